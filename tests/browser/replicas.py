"""Two API processes over one Postgres, behind a balancer that gives each connection to the next of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api_replicas import HOST, Replica, replicas

from service.embedded import processes

TOKEN = "token-of-the-admin-of-two-replicas"


class Balancer:
    """TCP, connection by connection in turn, to whoever takes it."""

    def __init__(self, ports: list[int]) -> None:
        self._ports, self._turn = ports, itertools.count()
        self.given: list[int] = []
        """The port of each connection so far."""
        (self.port,) = processes.free_ports(1)
        self.url = f"http://{HOST}:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, self.port))
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._ports:
            port = self._ports[next(self._turn) % len(self._ports)]
            with contextlib.suppress(OSError):
                back, out = await asyncio.open_connection(HOST, port)
                self.given.append(port)
                break
        else:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, out), self._pump(back, writer), return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        sink.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


@dataclass(frozen=True)
class Replicas:
    url: str
    each: list[Replica]
    balancer: Balancer


@contextlib.contextmanager
def two_replicas(database_url: str, folder: Path) -> Iterator[Replicas]:
    with replicas(database_url, folder, TOKEN, 2) as each:
        balancer = Balancer([replica.port for replica in each])
        try:
            yield Replicas(balancer.url, each, balancer)
        finally:
            balancer.close()

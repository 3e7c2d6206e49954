"""Two API processes over one Postgres, behind a balancer that gives each connection to the next of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from live import poll

from service.embedded import processes

HOST = "127.0.0.1"
TOKEN = "token-of-the-admin-of-two-replicas"


@dataclass
class Replica:
    """One API process, that can be ended and started again on its port."""

    number: int
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: processes.free_ports(1)[0])
    process: psutil.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--host", HOST,
                   "--port", str(self.port), "--timeout-graceful-shutdown", "5"]  # fmt: skip
        with (self.folder / f"api-{self.number}.log").open("ab") as log:
            self.process = psutil.Popen(command, env=self.environment, stdout=log, stderr=log)
        poll(self._up, bool)

    def _up(self) -> bool:
        try:
            return httpx.get(f"http://{HOST}:{self.port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process and self.process.is_running():
            self.process.kill()
            self.process.wait()


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
    """Both up, without a reconciler: what changes is what people do."""
    token = folder / "token"
    token.write_text(TOKEN)
    environment = os.environ | {
        "RCMAE_DATABASE_URL": database_url,
        "RCMAE_ARTIFACT_ROOT": str(folder),
        "RCMAE_ADMIN_TOKEN_FILE": str(token),
        "RCMAE_RECONCILE": "false",
        "RCMAE_RAY_URL": f"http://{HOST}:1",
        "RCMAE_MLFLOW_URL": f"http://{HOST}:1",
    }
    each = [Replica(number, folder, environment) for number in (1, 2)]
    balancer = Balancer([replica.port for replica in each])
    try:
        for replica in each:
            replica.start()
        yield Replicas(balancer.url, each, balancer)
    finally:
        balancer.close()
        for replica in each:
            replica.kill()

"""A real Postgres server, of the binaries that Debian's package `postgresql` brings."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from service.embedded import processes

PASSWORD = "tests-password"
START_SECONDS = 60.0


@dataclass
class PostgresServer:
    """A server on a port of its own that can be ended and started again; `start` it first."""

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, name: str) -> str:
        """Make an empty database, of a name that begins so; gives its SQLAlchemy URL."""
        name = f"{name}_{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://rcmae:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Start it if it does not run, and wait until it takes connections."""
        if self._process and self._process.poll() is None:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_binary("postgres")), "-D", str(self.folder / "data"), "-k", str(self.folder)]
                + [f"--{name}={value}" for name, value in self._settings().items()],
                **_unprivileged(), stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_SECONDS
        while True:
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                self._connect().close()
            except psycopg.OperationalError:
                assert time.monotonic() < end, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it as an administrator would: connections are cut, nothing is lost."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_SECONDS)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it as a power failure would."""
        if self._process and self._process.poll() is None:
            server = psutil.Process(self._process.pid)
            processes.kill([server, *server.children(recursive=True)])
            self._process.wait()

    def _settings(self) -> dict[str, Any]:
        # What makes it safe against a power failure of the machine makes tests slow.
        unsafe = dict.fromkeys(("fsync", "full_page_writes", "synchronous_commit"), "off")
        return {"port": self.port, "listen_addresses": "127.0.0.1", "max_connections": 200} | unsafe

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="rcmae", password=PASSWORD, dbname="postgres",
            autocommit=True, connect_timeout=30,
        )  # fmt: skip


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server with its files in a folder of its own; it takes two seconds."""
    initdb = _binary("initdb")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    (port,) = processes.free_ports(1)
    server = PostgresServer(folder, port)
    try:
        (folder / "password").write_text(PASSWORD)
        if "user" in (who := _unprivileged()):
            for path in (folder, folder / "password"):
                os.chown(path, who["user"], who["group"])
        subprocess.run(
            [str(initdb), "-D", str(folder / "data"), "-U", "rcmae", "-A", "scram-sha-256", "--no-sync",
             f"--pwfile={folder}/password", "-E", "UTF8", "--locale=C.UTF-8"],
            **who, cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def _binary(name: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    assert found, "the tests need a Postgres server: apt-get install postgresql"
    return found[-1]


def _unprivileged() -> dict[str, Any]:
    """What starts a process as another user where we are root, which Postgres refuses."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

"""Replicas of the API: real uvicorn processes over one database, each with a port of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from live import poll

from service.embedded import processes

HOST = "127.0.0.1"
START_S = 300


@dataclass
class Replica:
    """One API process, that can be ended and started again on its port."""

    number: int
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: processes.free_ports(1)[0])
    process: psutil.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def _log(self) -> Path:
        return self.folder / f"api-{self.number}.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--host", HOST,
                   "--port", str(self.port), "--timeout-graceful-shutdown", "5", "--no-access-log"]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = psutil.Popen(command, env=self.environment, stdout=log, stderr=log)
        poll(self._up, bool, START_S)

    def _up(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self._log.read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process and self.process.is_running():
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def replicas(database_url: str, folder: Path, token: str, count: int) -> Iterator[list[Replica]]:
    """So many that are up, without a reconciler: what changes is what people do. ``token`` is the admin's."""
    (folder / "token").write_text(token)
    environment = os.environ | {
        "RCMAE_DATABASE_URL": database_url,
        "RCMAE_ARTIFACT_ROOT": str(folder),
        "RCMAE_ADMIN_TOKEN_FILE": str(folder / "token"),
        "RCMAE_RECONCILE": "false",
        # Nothing listens there.
        "RCMAE_RAY_URL": f"http://{HOST}:1",
        "RCMAE_MLFLOW_URL": f"http://{HOST}:1",
    }
    each = [Replica(number, folder, environment) for number in range(1, count + 1)]
    try:
        for replica in each:
            replica.start()
        yield each
    finally:
        for replica in each:
            replica.kill()

"""Dependencies that take connections and never answer: they hold up the requests that need them, and no others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from conftest import token_of
from fastapi import FastAPI
from service_fakes import add_job, problem

from service.adapters.storage import Artifacts
from service.app import assemble, attach, close
from service.settings import Settings
from trainer.protocol.names import log_folder

CROWD = 34
"""Requests that need one dependency; those for all three together are 102."""
PATIENCE_S = 60
"""A limit for the test, not for the service: what hangs in it does so for ten minutes."""


class SilentServer:
    """Takes connections and never answers, until it closes them all."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def taken(self) -> int:
        """Connections that it has taken."""
        return len(self._open)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                self._open.append(self._listener.accept()[0])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def silent() -> Iterator[Callable[[], SilentServer]]:
    servers: list[SilentServer] = []

    def start() -> SilentServer:
        servers.append(SilentServer())
        return servers[-1]

    yield start
    for server in servers:
        if server._listener.fileno() != -1:
            server.close()


@pytest.fixture
def hanging(routes: FastAPI, settings: Settings, silent, use_s3, s3, monkeypatch) -> Iterator[tuple]:
    """The application over an MLflow, a Ray and an S3 that hang, and their servers."""
    mlflow, ray, storage = silent(), silent(), silent()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setattr("service.adapters.ray_cluster.TIMEOUT", httpx.Timeout(600))
    use_s3(s3.environment(storage.address))
    changes = {"mlflow_url": mlflow.address, "ray_url": ray.address, "artifact_root": "s3://bucket/artifacts"}
    state, _ = assemble(settings.model_copy(update=changes), refused=pytest.fail)
    attach(routes, state, None)
    yield routes, (mlflow, ray, storage)
    close(state)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


@pytest.mark.both_databases
def test_what_hangs_holds_up_only_what_needs_it(hanging, database):
    app, servers = hanging
    job_id = add_job(database, "running", artifact_uri="s3://bucket/artifacts/run", run_id="run", attempts=1)
    needy = {
        "MLflow": f"/v1/jobs/{job_id}/metrics?key=loss",
        "Ray": "/v1/cluster",
        "the artifact storage": f"/v1/jobs/{job_id}/images",
    }

    async def story() -> list[tuple[str, httpx.Response]]:
        headers = {"Authorization": f"Bearer {token_of('alice')}"}
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers, timeout=None) as api,
            httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=None) as browser,
        ):
            assert (await browser.post("/login", data={"token": token_of("alice")})).status_code == 303
            crowd = {
                asyncio.create_task(api.get(path)): name
                for _, (name, path) in itertools.product(range(CROWD), needy.items())
            }
            await _until(lambda: all(server.taken for server in servers))
            others: list[Awaitable[httpx.Response]] = [
                api.get("/healthz"),
                api.get("/v1/jobs"),
                browser.get("/jobs"),
                api.get(f"/v1/jobs/{job_id}"),
                api.get("/metrics"),
                api.get("/readyz"),
            ]
            *served, ready = await asyncio.gather(*others)
            assert [answer.status_code for answer in served] == [200] * len(served)
            assert {reason.partition(":")[0] for reason in ready.json()["reasons"]} >= {"MLflow", "Ray", "storage"}
            hanging_still = {crowd[task] for task in crowd if not task.done()}
            assert {"MLflow", "Ray"} <= hanging_still
            for server in servers:
                server.close()
            return [(name, await task) for task, name in crowd.items()]

    answers = asyncio.run(asyncio.wait_for(story(), PATIENCE_S))
    assert len(answers) == CROWD * len(needy)
    for name, answer in answers:
        assert problem(answer, 503, "unavailable")["detail"].startswith(f"{name} cannot be reached now: ")
        assert int(answer.headers["Retry-After"]) >= 1


def test_downloads_that_wait_hold_up_nobody(app, database, root, monkeypatch):
    log = root / "run" / log_folder(1)
    log.mkdir(parents=True)
    (log / "driver.0000.jsonl").write_text('{"message": "hello"}\n')
    job_id = add_job(database, "running", artifact_uri=str(root / "run"), attempts=1)
    storage_is_back, waiting, read = threading.Event(), threading.Semaphore(0), Artifacts.read

    def read_slowly(artifacts: Artifacts, *where: object) -> bytes | None:
        waiting.release()
        assert storage_is_back.wait(PATIENCE_S)
        return read(artifacts, *where)

    monkeypatch.setattr(Artifacts, "read", read_slowly)

    async def story() -> list[httpx.Response]:
        headers = {"Authorization": f"Bearer {token_of('alice')}"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://testserver", headers=headers, timeout=None
        ) as api:
            downloads = [asyncio.create_task(api.get(f"/v1/jobs/{job_id}/logs/1/driver")) for _ in range(60)]
            await _until(lambda: waiting.acquire(blocking=False))
            assert (await api.get("/v1/jobs")).status_code == 200
            assert (await api.get(f"/v1/jobs/{job_id}/images")).status_code == 200, "the storage answers others"
            assert not any(task.done() for task in downloads)
            storage_is_back.set()
            return [await task for task in downloads]

    for answer in asyncio.run(asyncio.wait_for(story(), PATIENCE_S)):
        assert (answer.status_code, answer.text) == (200, '{"message": "hello"}\n')

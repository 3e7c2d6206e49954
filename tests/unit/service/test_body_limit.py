"""Bodies that are too long: refused before they are read, or while they come in."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import token_of
from fastapi import FastAPI
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, job_of, post, problem

from service.app import create_app

LIMIT = 4096
CHUNK = b" " * 512


@pytest.fixture
def narrow(settings, ray, mlflow) -> FastAPI:
    app = create_app(settings.model_copy(update={"body_limit_bytes": LIMIT}))
    app.state.app_state = replace(app.state.app_state, ray=ray, mlflow=mlflow)
    return app


@pytest.fixture
def client(narrow) -> TestClient:
    return TestClient(narrow, headers={"Authorization": f"Bearer {token_of('alice')}"})


def body_of(length: int) -> str:
    text = json.dumps(SPEC)
    return text + " " * (length - len(text))


def test_a_body_up_to_the_limit_is_read(client):
    assert post(client, body_of(LIMIT)).status_code == 201
    found = problem(post(client, body_of(LIMIT + 1)), 413, "body_too_large")
    assert str(LIMIT) in found["detail"]
    assert len(client.get("/v1/jobs").json()["items"]) == 1


def test_whoever_sends_it_and_wherever_to(narrow):
    for headers in (
        {},
        {"Authorization": f"Bearer {token_of('nobody')}"},
        {"Authorization": f"Bearer {token_of('bob')}"},
    ):
        for method, path in (("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("PUT", "/nothing"), ("GET", "/healthz")):
            answer = TestClient(narrow).request(method, path, content="x" * (LIMIT + 1), headers=headers)
            problem(answer, 413, "body_too_large")


def test_a_route_that_reads_no_body_does_nothing_either(client, database):
    job_id = add_job(database)
    problem(client.post(f"/v1/jobs/{job_id}/cancel", content="x" * (LIMIT + 1)), 413, "body_too_large")
    assert job_of(database, job_id).state == "queued"


async def stream(app: FastAPI, path: str, chunks: int) -> tuple[int, list[dict[str, Any]]]:
    """Send a body of unknown length; how much of it was taken, and the answer."""
    taken, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": CHUNK, "more_body": taken < chunks}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [
        (b"authorization", f"Bearer {token_of('alice')}".encode()),
        (b"content-type", b"application/json"),
        (b"transfer-encoding", b"chunked"),
    ]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path}
    scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": headers}
    await app(scope | {"server": ("test", 80), "client": ("127.0.0.1", 1)}, receive, send)
    return taken, sent


def test_a_body_that_does_not_say_its_length_is_counted_while_it_comes_in(narrow):
    taken, sent = asyncio.run(stream(narrow, "/v1/jobs", 100_000))
    assert taken == LIMIT // len(CHUNK) + 1, "no more is read than shows that it is too long"
    start, *parts = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    body = json.loads(b"".join(part.get("body", b"") for part in parts))
    assert (start["status"], headers["content-type"], body["code"]) == (
        413,
        "application/problem+json",
        "body_too_large",
    )
    assert body["request_id"] == headers["x-request-id"]


def test_one_that_is_short_enough_is_read_whole(narrow):
    taken, sent = asyncio.run(stream(narrow, "/v1/jobs", 8))
    assert taken >= 8
    assert sent[0]["status"] == 422, "spaces are no spec"

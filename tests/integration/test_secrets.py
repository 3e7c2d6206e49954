"""A secret in every place where somebody could put one, then searched for in all that a live stack stores or shows."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import make_spec, wait_state
from local_stack import S3_SECRET, Stack

from rcmae import Client
from service.jobs.schemas import JobView
from service.jobs.state import State


def canary() -> str:
    return f"canary{secrets.token_hex(12)}"


@dataclass
class Planted:
    """The secrets, each by where it was put."""

    job: JobView
    label: str
    """No secret: it is there to be shown, and to prove that the search finds what there is."""
    secrets: dict[str, str] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    """What the service said meanwhile, but for the one answer that gives a token's text."""


def plant_tokens(stack: Stack, planted: dict[str, str], answers: list[str]) -> str:
    """Tokens of all kinds, used; gives one that is valid."""
    with httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {stack.token}"}) as http:
        made = [http.post("/v1/tokens", json={"owner": "dora", "role": "submitter"}).json() for _ in range(3)]
        rotated = http.post(f"/v1/tokens/{made[1]['id']}/rotate").json()
        answers.append(http.delete(f"/v1/tokens/{made[2]['id']}").text)
    planted |= {
        "the admin's token": stack.token,
        "a token": made[0]["token"],
        "a rotated token": made[1]["token"],
        "the token in its place": rotated["token"],
        "a revoked token": made[2]["token"],
        "a token that is none": f"rcmae_{canary()}",
        "the password of another scheme": canary(),
    }
    headers = [f"Bearer {text}" for name, text in planted.items() if "token" in name]
    headers.append(f"Basic {planted['the password of another scheme']}")
    for header in headers:
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("POST", "/v1/jobs/job-none/cancel")):
            answers.append(httpx.request(method, stack.url + path, headers={"Authorization": header}).text)
    return str(made[0]["token"])


def plant_in_requests(stack: Stack, token: str, planted: dict[str, str], answers: list[str]) -> None:
    """Secrets in headers, paths, queries and specs of requests that are refused."""

    def ask(method: str, path: str, body: Any = None, **headers: str) -> None:
        answer = httpx.request(
            method, stack.url + path, json=body, headers={"Authorization": f"Bearer {token}"} | headers
        )
        assert (answer.status_code >= 400) == (path != "/v1/jobs?limit=1"), f"{path}: {answer.status_code}"
        answers.append(answer.text + str(answer.headers))

    def put(where: str, prefix: str = "") -> str:
        planted[where] = canary()
        return prefix + planted[where]

    ask("GET", "/v1/jobs?limit=1", **{"X-Request-ID": put("a token as a request id", "rcmae_")})
    ask("POST", f"/v1/jobs/{put('a token as a path', 'rcmae_')}/cancel")
    ask("GET", f"/v1/jobs?cursor={put('a token in a query', 'rcmae_')}&access_token={put('an unknown parameter')}")
    ask("POST", "/v1/jobs", make_spec(), **{"Idempotency-Key": put("an idempotency key that is too long") * 20})
    for name, uri in {
        "a user in a URI": "s3://key:{}@bucket/images",
        "a signature in a URI": "s3://bucket/images?X-Amz-Signature={}",
        "a user in a URL": "https://user:{}@example.org/images.tar",
        "a token in a URL": "https://example.org/images.tar?token={}",
    }.items():
        for path in ("/v1/jobs", "/v1/jobs/plan"):
            ask("POST", path, make_spec(dataset={"uri": uri.format(put(f"{name} for {path}"))}))
    ask("POST", "/v1/jobs", make_spec() | {"aws_secret_access_key": put("a field that there is not")})
    ask("POST", "/v1/jobs", make_spec() | {"priority": put("a header as a priority", "Bearer ")})
    ask("POST", "/v1/jobs", make_spec() | {"storage": {"password": put("a field below one that there is not")}})
    ask("POST", "/v1/tokens", {"role": "viewer", "token": put("a token of one's own wish")})


@pytest.fixture(scope="module")
def planted(stack: Stack) -> Planted:
    """Secrets planted around a job that ran to its end."""
    found: dict[str, str] = {}
    answers: list[str] = []
    token = plant_tokens(stack, found, answers)
    plant_in_requests(stack, token, found, answers)
    found |= {
        "the cluster's token": stack.folder.ray_token.read_text(),
        "MLflow's password": stack.folder.mlflow_password.read_text(),
        "the storage's secret": S3_SECRET,
        "an idempotency key": canary(),
    }
    label = canary()
    spec = make_spec(
        name="secrets",
        labels={"shown": label},
        resources={"workers": 1},
        optimization={"epochs": 2},
        evaluation={"every_epochs": 1},
        register_as="secrets",
    )
    with Client(stack.url, token) as dora:
        job = dora.submit(spec, found["an idempotency key"])
        assert dora.submit(spec, found["an idempotency key"]).id == job.id
    done = wait_state(stack, job.id, State.SUCCEEDED, timeout_s=400)
    return Planted(done, label, found, answers)


def shown(stack: Stack, job: JobView) -> Iterator[tuple[str, str]]:
    """Everything that can be asked for, by where."""
    admin = {"Authorization": f"Bearer {stack.token}"}
    below = ("", "/spec", "/events", "/attempts", "/logs", "/metrics", "/images", "/checkpoints", "/stream?once=true")
    paths = [f"/v1/jobs/{job.id}{path}" for path in below]
    paths += ["/v1/jobs?limit=500", "/v1/tokens?limit=500", "/v1/audit?limit=500", "/v1/cluster", "/v1/backbones"]
    paths += [
        "/v1/backbones/secrets",
        "/v1/backbones/secrets/versions/1",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/readyz",
    ]
    for path in paths:
        answer = httpx.get(stack.url + path, headers=admin, timeout=30)
        assert answer.status_code == 200, path
        yield path, answer.text
    ports = stack.state.ports
    ray = {"Authorization": f"Bearer {stack.folder.ray_token.read_text()}"}
    tables = [f"/api/v0/{name}?detail=1&limit=10000" for name in ("actors", "workers", "jobs", "nodes", "tasks")]
    for path in ("/api/jobs/", f"/api/jobs/{job.id}-a1", f"/api/jobs/{job.id}-a1/logs", *tables):
        answer = httpx.get(f"http://127.0.0.1:{ports.ray_dashboard}{path}", headers=ray, timeout=30)
        assert answer.status_code == 200, path
        yield f"Ray's {path}", answer.text
    run = httpx.get(f"{stack.mlflow_url}/api/2.0/mlflow/runs/get", params={"run_id": job.run_id})
    assert run.status_code == 200
    yield "MLflow's run", run.text
    for command in (("status", "--json"), ("doctor",), ("jobs", "show", job.id, "--json")):
        done = stack.rcmae(*command)
        yield f"rcmae {command[0]}", done.stdout + done.stderr


def stored(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """Every file of the stack, but for those whose one content is a secret."""
    keep = set(stack.folder.credentials)
    for folder in (stack.state_dir, stack.state.temp_dir):
        for place, _, names in os.walk(folder):
            for path in (Path(place, name) for name in names):
                if path.is_file() and not path.is_symlink() and path not in keep:
                    yield str(path), path.read_bytes()


def test_a_secret_is_shown_nowhere(stack, planted):
    found, labelled = [], set()
    for place, text in [*shown(stack, planted.job), *(("an answer", text) for text in planted.answers)]:
        found += [(name, place) for name, secret in planted.secrets.items() if secret in text]
        labelled |= {place} if planted.label in text else set()
    assert not found, "\n".join(map(str, found))
    for place in (f"/v1/jobs/{planted.job.id}", f"Ray's /api/jobs/{planted.job.id}-a1"):
        assert place in labelled, "the search finds what is there"


def test_a_secret_is_stored_nowhere(stack, planted):
    needles = {name: secret.encode() for name, secret in planted.secrets.items()}
    found, labelled = [], set()
    for place, data in stored(stack):
        found += [(name, place) for name, secret in needles.items() if secret in data]
        labelled |= {Path(place).name.partition("-")[0]} if planted.label.encode() in data else set()
    assert not found, "\n".join(map(str, found))
    assert "rcmae.db" in labelled, "the search finds what is there"


def test_files_that_hold_one_are_their_owners_alone(stack):
    for file in (*stack.folder.credentials, stack.state_dir / "stack.json"):
        assert file.stat().st_mode & 0o077 == 0, file

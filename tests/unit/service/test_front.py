"""The Compose file's nginx before a real API: whose address counts, and what it limits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import token_of
from fastapi import FastAPI
from service_fakes import SPEC
from sqlalchemy import select
from test_stream import serving

from service import deployment
from service.db.tables import Audit
from service.embedded.processes import free_ports
from service.http.failures import Buckets

CHECKOUT = Path(__file__).parents[3]
FLOOD = 230
"""More requests than the front lets one address send at once."""
CLIENT, OTHER = "192.0.2.7", "192.0.2.8"


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHECKOUT / deployment.COMPOSE_FILE).read_text())
    return found


@contextmanager
def nginx(folder: Path, api: str, trusted: str) -> Iterator[str]:
    """The front as the Compose file starts it, with ports and folders of this test's own."""
    (port,) = free_ports(1)
    text = (CHECKOUT / "deploy" / "docker" / "front.conf").read_text().replace("/tmp/", f"{folder}/")
    text = text.replace("http://api:8000", api).replace("listen 8080", f"listen 127.0.0.1:{port}")
    (folder / "front.conf").write_text(text.replace("rate=20r/s", "rate=1r/m"))  # however slow this machine is
    *shell, script = compose()["services"]["front"]["entrypoint"]
    script = script.replace("$$", "$").replace("/tmp/", f"{folder}/").replace("/etc/rcmae/", f"{folder}/")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    assert shutil.which("nginx", path=path), "these tests need nginx: sudo apt-get install nginx-light"
    with (folder / "nginx.log").open("w") as log:
        process = subprocess.Popen(
            [*shell, script], env={"PATH": path, "RCMAE_TRUSTED_PROXIES": trusted}, stderr=log, stdout=log
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while True:
            try:
                assert httpx.get(f"{url}/healthz").status_code == 200
                break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "nginx.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def front(app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., httpx.Client]]:
    """Makes clients of the front, which trusts the proxies that it is told of; the API trusts the front."""
    api_variables = compose()["services"]["api"]["environment"]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", api_variables["FORWARDED_ALLOW_IPS"])
    with ExitStack() as opened:

        def start(trusted: str = "", **headers: Any) -> httpx.Client:
            api = opened.enter_context(serving(app))
            url = opened.enter_context(nginx(tmp_path, api, trusted))
            return opened.enter_context(httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60))

        yield start


def addresses(database) -> set[str | None]:
    with database.read() as session:
        return set(session.scalars(select(Audit.address)))


def test_a_client_cannot_choose_its_address(front, database):
    client = front()
    for claimed in (CLIENT, f"{OTHER}, {CLIENT}"):
        assert client.post("/v1/jobs", json=SPEC, headers={"X-Forwarded-For": claimed}).status_code == 401
    assert addresses(database) == {"127.0.0.1"}


def test_behind_a_proxy_that_is_trusted_each_client_has_its_own_address(app, front, database):
    client = front("127.0.0.1 198.51.100.0/24")
    app.state.failures = Buckets(1)
    # The first is what the client claims, the last is the trusted network's own.
    seen = [
        client.post("/v1/jobs", json=SPEC, headers={"X-Forwarded-For": f"203.0.113.9, {address}, 198.51.100.4"})
        for address in (CLIENT, CLIENT, OTHER)
    ]
    assert [answer.status_code for answer in seen] == [401, 429, 401]
    assert addresses(database) == {CLIENT, OTHER}


def flood(client: httpx.Client, path: str, method: str = "GET", **options: Any) -> list[httpx.Response]:
    return [client.request(method, path, **options) for _ in range(FLOOD)]


@pytest.mark.parametrize(
    ("method", "path", "cookie"),
    [("GET", "/v1/jobs", ""), ("GET", "/docs", ""), ("POST", "/login", ""), ("POST", "/login", "rcmae_session=x")],
)
def test_a_flood_of_strangers_is_refused_and_credentials_pass(front, method, path, cookie):
    client = front()
    answers = flood(client, path, method, headers={"Cookie": cookie})
    refused = next(each for each in answers if each.status_code == 429)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert int(refused.headers["Retry-After"]) > 0
    assert (refused.json()["status"], refused.json()["code"]) == (429, "rate_limited")
    assert re.search("try again in [0-9]+ s", refused.json()["detail"])
    headers = {"Authorization": f"Bearer {token_of('alice')}"}
    assert [client.get("/v1/jobs", headers=headers).status_code for _ in range(3)] == [200] * 3


def test_valid_credentials_are_not_limited(front):
    client = front()
    answer = client.post("/login", data={"token": token_of("bob")})
    cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    for headers in ({"Authorization": f"Bearer {token_of('alice')}"}, cookie):
        assert {each.status_code for each in flood(client, "/v1/jobs?limit=1", headers=headers)} == {200}

"""The dashboard behind a balancer without sticky sessions, and through the death of the process that it listens to."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from browser_world import Visits
from live import make_spec
from playwright.sync_api import expect
from postgres_server import PostgresServer
from replicas import TOKEN, Replicas, two_replicas

pytestmark = [pytest.mark.slow]
EXPECTED = [r"Failed to load resource", r"ERR_"]
"""What a browser says on its console of a server that is away."""


@pytest.fixture(scope="module")
def replicas(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with two_replicas(postgres.url("replicas"), tmp_path_factory.mktemp("replicas")) as found:
        yield found


def ask(replica_port: int, method: str, path: str, **more: object) -> httpx.Response:
    answer = httpx.request(
        method, f"http://127.0.0.1:{replica_port}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, **more
    )
    assert answer.status_code < 300, answer.text
    return answer


def test_any_replica_serves_any_request_and_hears_of_any_change(visits: Visits, replicas: Replicas) -> None:
    visit = visits(TOKEN, url=replicas.url)
    one, other = replicas.each
    page = visit.open("/jobs")
    for replica in (one, other):
        name = f"made-by-{replica.number}"
        job = ask(replica.port, "POST", "/v1/jobs", json=make_spec(name=name)).json()
        row = page.locator("tr", has_text=name)
        expect(row).to_contain_text("queued")
        ask(other.port, "POST", f"/v1/jobs/{job['id']}/pause")
        expect(row).to_contain_text("paused")
        ask(one.port, "POST", f"/v1/jobs/{job['id']}/resume")
        expect(row).to_contain_text("queued")
    assert set(replicas.balancer.given) == {one.port, other.port}


def test_a_page_goes_on_when_its_replica_dies(visits: Visits, replicas: Replicas) -> None:
    visit = visits(TOKEN, url=replicas.url)
    visit.expected += EXPECTED
    one, other = replicas.each
    page = visit.open("/")
    expect(page.locator("[data-live-switch]")).to_have_attribute("data-state", "on")
    for dying, living in ((one, other), (other, one)):
        dying.kill()
        name = f"while-{dying.number}-is-dead"
        ask(living.port, "POST", "/v1/jobs", json=make_spec(name=name))
        expect(page.locator("tr", has_text=name)).to_be_visible()
        expect(page.locator("[data-disconnected]")).to_be_hidden()
        dying.start()


def test_nothing_answers_and_then_it_does_again(visits: Visits, replicas: Replicas) -> None:
    visit = visits(TOKEN, url=replicas.url)
    visit.expected += EXPECTED
    page = visit.open("/jobs")
    expect(page.locator("[data-live-switch]")).to_have_attribute("data-state", "on")
    for replica in replicas.each:
        replica.kill()
    expect(page.locator("[data-disconnected]")).to_be_visible()
    visit.shot(page, "disconnected")
    replicas.each[0].start()
    ask(replicas.each[0].port, "POST", "/v1/jobs", json=make_spec(name="after-the-dark"))
    expect(page.locator("[data-disconnected]")).to_be_hidden()
    expect(page.locator("tr", has_text="after-the-dark")).to_be_visible()
    replicas.each[1].start()

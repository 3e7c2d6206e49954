"""Requests without a valid token: how many an address may send, and what they leave behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from conftest import token_of
from fastapi import FastAPI
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, problem
from sqlalchemy import select, update

from service.auth.sessions import COOKIE
from service.db.tables import Audit, Token, now
from service.http.failures import Buckets, network_of

LIMIT = 3
OTHER = ("192.0.2.9", 1234)
FAILING: list[Callable[[TestClient], Any]] = [
    lambda client: client.get("/v1/jobs"),
    lambda client: client.get("/v1/jobs", headers={"Authorization": "Bearer nobody-has-this-one"}),
    lambda client: client.post("/v1/jobs", json=SPEC),
    lambda client: client.get("/hf/api/models/rcmae/digits"),
    lambda client: client.post("/login", data={"token": "nobody-has-this-one"}, follow_redirects=False),
    lambda client: client.get("/tokens", follow_redirects=False),
    lambda client: client.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"}),
    lambda client: client.get("/v1/jobs?no_such_parameter=1"),
    lambda client: client.post("/forms/yaml", content=b"{", headers={"Content-Type": "application/json"}),
]


@pytest.fixture(autouse=True)
def _low(app: FastAPI) -> None:
    app.state.failures = Buckets(LIMIT)


@pytest.mark.parametrize("fail", FAILING)
def test_an_address_that_fails_too_often_is_told_when_to_come_back(app, clients, fail):
    statuses = [fail(clients.anonymous).status_code for _ in range(LIMIT)]
    assert 429 not in statuses
    answer = fail(clients.anonymous)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert "too many requests without a valid token" in answer.text
    assert fail(TestClient(app, client=OTHER)).status_code == statuses[0], "another address is not concerned"


def test_the_refusal_is_a_problem(clients):
    for _ in range(LIMIT):
        clients.anonymous.get("/v1/jobs")
    assert "try again in" in problem(clients.anonymous.get("/v1/jobs"), 429, "rate_limited")["detail"]


def test_a_valid_token_is_answered_from_an_address_that_has_failed_too_often(clients, browsers):
    for _ in range(2 * LIMIT):
        clients.anonymous.get("/v1/jobs")
    assert clients.alice.get("/v1/jobs").status_code == 200
    assert browsers.alice.get("/tokens").status_code == 200
    answer = browsers.anonymous.post("/login", data={"token": token_of("bob")})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert clients.anonymous.get("/healthz").status_code == 200
    assert clients.anonymous.get("/login").status_code == 200


def test_whoever_has_a_token_can_log_in_from_the_page_that_refuses_an_address(browsers):
    for _ in range(LIMIT):
        browsers.anonymous.get("/jobs")
    refused = browsers.anonymous.get("/jobs?state=failed")
    assert refused.status_code == 429
    (to,) = re.findall('name="next" value="([^"]*)"', refused.text)
    answer = browsers.anonymous.post("/login", data={"token": token_of("bob"), "next": to})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/jobs?state=failed")


def test_a_bucket_fills_again_and_only_so_many_are_kept():
    moment = 0.0
    buckets = Buckets(60, lambda: moment, largest=2)
    assert [buckets.take("a") for _ in range(61)] == [0.0] * 60 + [1.0]
    moment = 1.5
    assert [buckets.take("a") for _ in range(2)] == [0.0, 0.5]
    moment = 10_000.0
    assert [buckets.take("a") for _ in range(61)][-1] == 1.0, "never more than one minute's worth"
    for key in ("b", "c"):
        buckets.take(key)
    assert buckets.take("a") == 0.0, "forgotten, as the one that was quiet for longest"


def test_a_network_of_ipv6_is_one_client():
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("192.0.2.1") == network_of("::ffff:192.0.2.1") != network_of("::ffff:192.0.2.2")
    assert network_of("192.0.2.1") != network_of("192.0.2.2")
    assert network_of("testclient") == "testclient"
    assert len(network_of("x" * 60_000)) <= 64, "what a trusted proxy passes on may be anything"


# --- what they leave in the audit log ---------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_flood_leaves_one_line_for_each_minute_address_and_action(app, clients, database, monkeypatch, capsys):
    app.state.failures = Buckets(10_000)
    minute = 0
    monkeypatch.setattr("service.access.refusals.minute_now", lambda: minute)
    job_id = add_job(database)

    def flood() -> None:
        for _ in range(12):
            clients.anonymous.post("/v1/jobs", json=SPEC, headers={"Authorization": "Bearer nobody-has-this-one"})
            clients.anonymous.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"})
        clients.anonymous.post(f"/v1/jobs/{job_id}/cancel")
        TestClient(app, client=OTHER).post("/v1/jobs", json=SPEC)
        clients.viewer.post("/v1/jobs", json=SPEC)

    flood()
    minute = 1
    flood()
    with database.read() as session:
        found = list(session.scalars(select(Audit).order_by(Audit.id)))
    once = [("-", "job.submit", "testclient"), ("-", "job.cancel", "testclient"), ("-", "job.submit", OTHER[0])]
    assert [(line.actor, line.action, line.address) for line in found] == 2 * [
        *once,
        ("viewer", "job.submit", "testclient"),
    ]
    assert [(line.detail or {}).get("unrecorded") for line in found] == [None] * 4 + [23] + [None] * 3
    assert '"refused": 10' in capsys.readouterr().out


def test_a_session_whose_token_has_expired_leaves_one_line_a_minute_too(app, browsers, database, monkeypatch):
    """Its logout leads to the login page, which is no error."""
    app.state.failures = Buckets(10_000)
    monkeypatch.setattr("service.access.refusals.minute_now", lambda: 0)
    with database.session() as session:
        session.execute(update(Token).where(Token.owner == "bob").values(expires_at=now()))
    cookie = {"Cookie": f"{COOKIE}={browsers.bob.cookies[COOKIE]}"}
    for _ in range(5):
        assert browsers.anonymous.post("/logout", headers=cookie).status_code == 303
    with database.read() as session:
        assert len(session.scalars(select(Audit).where(Audit.action == "session.end")).all()) == 1


@pytest.mark.both_databases
def test_many_addresses_together_leave_a_bounded_number_of_lines(app, clients, database, monkeypatch):
    monkeypatch.setattr("service.access.refusals.minute_now", lambda: 0)
    monkeypatch.setattr("service.access.refusals.LINES_A_MINUTE", 4)
    for number in range(8):
        TestClient(app, client=(f"192.0.2.{number}", 1)).post("/v1/jobs", json=SPEC)
    clients.viewer.post("/v1/jobs", json=SPEC)
    with database.read() as session:
        assert [line.actor for line in session.scalars(select(Audit))] == ["-"] * 4 + ["viewer"]

"""Hearing which jobs change, over a real HTTP server: who hears of what, from when, and until when."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from conftest import token_of
from fastapi import FastAPI
from service_fakes import SPEC, add_job, problem
from sqlalchemy import update
from test_stream import CLIENT, Stream, eventually, serving

from service.access import open_responses
from service.auth.caller import sha256
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Token, now
from service.jobs import changes, repository
from service.jobs.lifecycle import transition
from service.jobs.state import State

pytestmark = pytest.mark.both_databases


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"POLL_S": 0.03, "LONGEST_PAUSE_S": 0.1}.items():
        monkeypatch.setattr(changes, name, seconds)
    monkeypatch.setattr(open_responses, "LOOK_S", 0.1)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


class Heard(Stream):
    """An open stream of all jobs, which has begun."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer)
        assert next(iter(self)).data == {"jobs": []}

    def next(self) -> list[str]:
        jobs: list[str] = self.until_kind("jobs").data["jobs"]
        return jobs


@contextmanager
def listening(url: str, owner: str = "alice") -> Iterator[Heard]:
    headers = {"Authorization": f"Bearer {token_of(owner)}"}
    with CLIENT.stream("GET", f"{url}/v1/stream", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield Heard(answer)


def move(database: Database, job_id: str, state: State = State.CANCELLED) -> None:
    with database.session() as session:
        transition(session, repository.get(session, job_id), state, None, "Moved.", "controller")


def get_on(database: Database, job_id: str, epoch: float) -> None:
    """Without an event, as progress is told."""
    with database.session() as session:
        repository.get(session, job_id).progress = {"epoch": epoch, "epochs": 2, "step": 1, "steps": 2}


def test_what_changes_is_named_to_those_who_see_it_and_to_nobody_else(url, database):
    of_alice, of_bob = add_job(database, "queued", owner="alice"), add_job(database, "queued", owner="bob")
    with (
        listening(url, "alice") as alice,
        listening(url, "operator") as operator,
        listening(url, "viewer") as viewer,
    ):
        move(database, of_bob)
        assert operator.next() == viewer.next() == [of_bob]
        move(database, of_alice)
        assert alice.next() == operator.next() == viewer.next() == [of_alice]
        assert [event.data["jobs"] for event in alice.seen] == [[], [of_alice]]


def test_progress_is_news_though_no_event_tells_of_it(url, database):
    job_id = add_job(database, "running")
    with listening(url) as alice:
        for epoch in (0.5, 1.0):
            get_on(database, job_id, epoch)
            assert alice.next() == [job_id]


def test_a_job_that_is_submitted_is_news(url, clients):
    with listening(url) as alice:
        job_id = clients.alice.post("/v1/jobs", json=SPEC).json()["id"]
        assert alice.next() == [job_id]


def test_what_changes_right_after_the_beginning_is_not_missed(app, database, monkeypatch):
    """Also where the first look takes its time: nothing is told to have begun before it."""
    job_id = add_job(database, "queued")
    look, may_look = changes._first_poll, threading.Event()

    def slowly(found: Database) -> Any:
        may_look.wait(20)
        return look(found)

    monkeypatch.setattr(changes, "_first_poll", slowly)
    with serving(app) as url:
        threading.Timer(0.3, may_look.set).start()
        with listening(url) as alice:
            move(database, job_id)
            assert alice.next() == [job_id]


def test_many_listen_and_one_looks(app, url, database, monkeypatch):
    looks: list[str] = []
    look = changes._poll
    monkeypatch.setattr(changes, "_poll", lambda *found: looks.append(threading.current_thread().name) or look(*found))
    job_id = add_job(database, "running")
    heard = [listening(url) for _ in range(20)]
    streams = [each.__enter__() for each in heard]
    assert app.state.changes.listeners == 20
    get_on(database, job_id, 0.5)
    assert [each.next() for each in streams] == [[job_id]] * 20
    looks.clear()
    for epoch in (0.6, 0.7, 0.8):
        get_on(database, job_id, epoch)
        assert [each.next() for each in streams] == [[job_id]] * 20
    assert len(looks) < 20, "as many as there were moments, and not as many as listen"
    for each in heard:
        each.__exit__(None, None, None)
    eventually(lambda: app.state.changes.listeners == 0)
    eventually(lambda: app.state.changes._task is None)
    with listening(url) as again:
        move(database, job_id, State.FAILED)
        assert again.next() == [job_id]


def test_it_ends_with_the_token(url, database):
    with listening(url, "bob") as bob, listening(url, "alice") as alice:
        with database.session() as session:
            session.execute(update(Token).where(Token.sha256 == sha256(token_of("bob"))).values(revoked_at=now()))
        assert bob.rest() == []
        job_id = add_job(database, "queued")
        move(database, job_id)
        assert alice.next() == [job_id]


def test_it_ends_with_the_service(app, url):
    with listening(url) as alice:
        app.state.streams.close()
        assert alice.rest() == []


def test_a_database_that_was_away_costs_no_news(url, database, monkeypatch):
    job_id = add_job(database, "queued")
    look, away = changes._poll, threading.Event()

    def looking(*found: Any) -> Any:
        if away.is_set():
            raise DatabaseUnreachable("connection refused")
        return look(*found)

    monkeypatch.setattr(changes, "_poll", looking)
    with listening(url) as alice:
        away.set()
        move(database, job_id)
        away.clear()
        assert alice.next() == [job_id]


def test_a_look_that_fails_costs_no_news(url, database, monkeypatch):
    job_id = add_job(database, "queued")
    look, broken = changes._poll, threading.Event()

    def looking(*found: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise RuntimeError("never seen before")
        return look(*found)

    monkeypatch.setattr(changes, "_poll", looking)
    with listening(url) as alice:
        broken.set()
        eventually(lambda: not broken.is_set())
        move(database, job_id)
        assert alice.next() == [job_id]


def test_once_is_one_event(clients):
    answer = clients.alice.get("/v1/stream", params={"once": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = Stream(answer).rest()
    assert [(event.kind, event.data) for event in events] == [("jobs", {"jobs": []})]
    assert json.loads(clients.alice.get("/v1/stream", params={"once": True}).text.partition("data: ")[2]) == {
        "jobs": []
    }
    problem(clients.anonymous.get("/v1/stream", params={"once": True}), 401, "unauthorized")

"""Requests that add trials to one search at the same time, and such that take long or die."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from conftest import Clients, token_of
from fastapi.testclient import TestClient
from optuna.trial import TrialState
from search_files import MOMENTUM, SearchFiles
from service_fakes import events_of, problem

from service.adapters.studies import Studies
from service.db.database import Database
from service.db.tables import SearchClaim, now
from service.searches import claims
from trainer.protocol import names

pytestmark = pytest.mark.both_databases

KEY = {"Idempotency-Key": "once"}
FOUR = {"points": [{MOMENTUM: value} for value in (0.95, 0.96, 0.97, 0.98)], "beyond_budget": True}


def at_once(clients: Clients, *requests: Callable[[TestClient], Any]) -> list[Any]:
    """The answers to requests that are all sent at the same moment, each from a thread of its own."""
    start = threading.Barrier(len(requests))
    answers: list[Any] = [None] * len(requests)

    def send(index: int) -> None:
        client = TestClient(clients.alice.app, headers={"Authorization": f"Bearer {token_of('alice')}"})
        start.wait()
        answers[index] = requests[index](client)

    threads = [threading.Thread(target=send, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.fixture
def _together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody changes the study before all have looked at it, if they look at it at the same time."""
    before, enqueue = threading.Barrier(2), Studies.enqueue

    def waits(self: Studies, *arguments: Any) -> list[int]:
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for its turn
            before.wait(1.0)
        return enqueue(self, *arguments)

    monkeypatch.setattr(Studies, "enqueue", waits)


@pytest.mark.usefixtures("_together")
def test_two_retries_of_a_trial_at_once_make_one_trial(clients, searches: SearchFiles, database):
    job_id = searches.add()
    failed = searches.trial(job_id, TrialState.FAIL)
    path = f"/v1/searches/{job_id}/trials/{failed}/retry"
    answers = at_once(clients, *[lambda client: client.post(path)] * 2)
    assert [(answer.status_code, answer.json()["number"]) for answer in answers] == [(200, 1)] * 2
    assert searches.states(job_id) == ["FAIL", "WAITING"]
    assert [event.message for event in events_of(database, job_id)] == ["Retried trial 0: 1."]


@pytest.mark.usefixtures("_together")
def test_two_additions_at_once_share_the_room(clients, searches: SearchFiles):
    job_id = searches.add()
    for _ in range(6):
        searches.trial(job_id, values=[0.5])
    body = {"points": [{MOMENTUM: 0.95}, {MOMENTUM: 0.96}]}
    answers = at_once(clients, *[lambda client: client.post(f"/v1/searches/{job_id}/trials", json=body)] * 2)
    assert sorted(answer.status_code for answer in answers) == [201, 409], [answer.text for answer in answers]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert "room for 0 more" in problem(refused, 409, "budget_spent")["detail"]
    assert searches.states(job_id).count("WAITING") == 2


@pytest.mark.usefixtures("_together")
def test_the_same_request_twice_at_once_adds_its_trials_once(clients, searches: SearchFiles):
    job_id = searches.add()
    path = f"/v1/searches/{job_id}/trials"
    answers = at_once(clients, *[lambda client: client.post(path, json=FOUR, headers=KEY)] * 2)
    assert sorted(answer.status_code for answer in answers) == [200, 201], [answer.text for answer in answers]
    assert searches.states(job_id) == ["WAITING"] * 4


# --- requests that take long, or die ----------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on by so many seconds."""
    offset = [timedelta(0)]
    monkeypatch.setattr(claims, "now", lambda: now() + offset[0])
    monkeypatch.setattr(claims, "WAIT_S", 0.0)

    def move(seconds: float) -> None:
        offset[0] += timedelta(seconds=seconds)

    return move


def one_by_one(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[int], None]) -> None:
    """Add points one at a time, and do something after each one; it is called with its index."""
    enqueue, added = Studies.enqueue, [0]
    monkeypatch.setattr("service.searches.service.ADDED_AT_ONCE", 1)

    def slowly(self: Studies, *arguments: Any) -> list[int]:
        numbers = enqueue(self, *arguments)
        added[0] += 1
        meanwhile(added[0])
        return numbers

    monkeypatch.setattr(Studies, "enqueue", slowly)


def test_an_addition_that_takes_minutes_is_not_repeated(api, searches: SearchFiles, later, monkeypatch):
    job_id = searches.add()
    path, seen = f"/v1/searches/{job_id}/trials", []

    def meanwhile(_: int) -> None:
        later(50)
        if len(seen) < 4:
            seen.append(None)
            seen[-1] = api.post(path, json=FOUR, headers=KEY)

    one_by_one(monkeypatch, meanwhile)
    assert api.post(path, json=FOUR, headers=KEY).status_code == 201
    for answer in seen:
        assert "is adding trials" in problem(answer, 503, "unavailable")["detail"]
    assert len(seen) == 4
    assert searches.states(job_id) == ["WAITING"] * 4


def test_a_request_that_was_held_up_too_long_adds_no_more(api, searches: SearchFiles, database, later, monkeypatch):
    """Another one has taken the search over: it may have added trials to the room that was counted."""
    job_id = searches.add()
    path = f"/v1/searches/{job_id}/trials"

    def meanwhile(added: int) -> None:
        if added == 2:
            later(61)
            with claims.claimed(database, job_id):
                pass

    one_by_one(monkeypatch, meanwhile)
    detail = problem(api.post(path, json=FOUR, headers=KEY), 503, "unavailable")["detail"]
    assert "interrupted for too long. Repeat the request" in detail
    assert searches.states(job_id) == ["WAITING"] * 2
    assert events_of(database, job_id) == []
    monkeypatch.undo()
    again = api.post(path, json=FOUR, headers=KEY)
    assert [trial["number"] for trial in again.json()["items"]] == [0, 1, 2, 3]
    assert searches.states(job_id) == ["WAITING"] * 4


def test_a_request_whose_process_died_is_taken_up_when_its_claim_has_expired(
    api, searches: SearchFiles, database: Database, later
):
    job_id = searches.add()
    path = f"/v1/searches/{job_id}/trials"
    failed = searches.trial(job_id, TrialState.FAIL)
    claims._claim(database, job_id, "of-a-process-that-died")
    problem(api.post(f"{path}/{failed}/retry"), 503, "unavailable")
    later(61)
    assert api.post(f"{path}/{failed}/retry").json()["number"] == 1
    assert searches.studies.trials(job_id)[1].user_attrs[names.TRIAL_RETRY_OF] == failed
    with database.read() as session:
        assert session.get(SearchClaim, job_id) is None


def test_a_search_is_free_again_after_a_refusal(api, searches: SearchFiles, later):  # noqa: ARG001 - does not wait
    job_id = searches.add()
    running = searches.trial(job_id, TrialState.RUNNING)
    problem(api.post(f"/v1/searches/{job_id}/trials/{running}/retry"), 409, "not_allowed_in_state")
    assert api.post(f"/v1/searches/{job_id}/trials", json=FOUR).status_code == 201

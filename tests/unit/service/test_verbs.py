"""Every verb in every state, through the REST interface: once, twice in a row, and by two callers at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Barrier
from typing import Any

import httpx
import pytest
from conftest import Clients
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, events_of, post, problem
from verb_table import ROWS, STATES

from service.db.database import Database
from service.db.tables import Job
from service.jobs.lifecycle import EFFECTS, TRANSITIONS, Effect, Verb
from service.jobs.repository import new_id
from service.jobs.state import State

# What people can send, and the row of the table that it belongs to.
REQUESTS: dict[str, tuple[str, str, str, dict[str, Any] | None]] = {
    "cancel": ("cancel", "POST", "/cancel", None),
    "pause": ("pause", "POST", "/pause", None),
    "resume": ("resume", "POST", "/resume", None),
    "retry": ("retry", "POST", "/retry", None),
    "retry from scratch": ("retry", "POST", "/retry", {"from_scratch": True}),
    "stop": ("stop", "POST", "/stop", None),
    "delete": ("delete", "DELETE", "", None),
    "patch priority": ("patch_priority", "PATCH", "", {"priority": 7}),
    "patch labels": ("patch_notes", "PATCH", "", {"labels": {"team": "vision"}}),
    "patch notes": ("patch_notes", "PATCH", "", {"notes": "look at this"}),
}


def send(client: TestClient, job_id: str, what: str) -> httpx.Response:
    _, method, path, body = REQUESTS[what]
    return client.request(method, f"/v1/jobs/{job_id}{path}", **({"json": body} if body else {}))


@dataclass(frozen=True)
class Model:
    """What people see of a job."""

    state: str
    """`gone` once it was deleted."""
    edits: frozenset[str] = frozenset()
    events: int = 0

    def after(self, what: str) -> tuple[Model, int, str | None]:
        """The job after a request, the answer's status and its code."""
        if self.state == "gone":
            return self, 404, "job_not_found"
        if what == "stop":
            return self, 409, "not_for_this_kind"
        cell = ROWS[REQUESTS[what][0]][self.state]
        if cell == "409":
            return self, 409, "not_allowed_in_state"
        if cell == "same" or (cell == "edit" and what in self.edits):
            return self, 200, None
        if cell == "edit":
            return replace(self, edits=self.edits | {what}, events=self.events + 1), 200, None
        moved = cell != "gone"
        return replace(self, state=cell, events=self.events + moved), 200, None


def job_as_shown(client: TestClient, database: Database, job_id: str) -> Model:
    """The job as it is."""
    answer = client.get(f"/v1/jobs/{job_id}")
    if answer.status_code == 404:
        return Model("gone")
    job = answer.json()
    edits = {"patch priority": job["priority"] == 7, "patch labels": job["labels"] != {}, "patch notes": job["notes"]}
    events = events_of(database, job_id)
    assert all(event.actor == "alice" for event in events)
    if events:
        assert events[-1].state == job["state"]
    return Model(job["state"], frozenset(edit for edit, made in edits.items() if made), len(events))


def as_people_see(model: Model) -> Model:
    return Model("gone") if model.state == "gone" else model


def code_of(answer: httpx.Response) -> tuple[int, str | None]:
    assert answer.status_code < 500, answer.text
    return answer.status_code, answer.json().get("code")


# --- the table --------------------------------------------------------------------------------------------------------


def test_there_is_a_row_for_each_verb_and_a_column_for_each_state():
    assert set(ROWS) == {verb.value for verb in Verb}
    assert [state.value for state in State] == STATES
    assert {row for row, *_ in REQUESTS.values()} == set(ROWS)


@pytest.mark.parametrize(("verb", "state"), list(itertools.product(Verb, State)))
def test_a_verb_does_what_the_table_says_and_moves_along_a_transition(verb, state):
    """For all kinds: what `stop` does to searches is seen only here."""
    cell, effect = ROWS[verb][state], EFFECTS[verb][state]
    if isinstance(effect, State):
        assert effect in TRANSITIONS[state]
    assert effect == {"409": Effect.REFUSED, "same": Effect.SAME}.get(cell, cell)


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_does_what_the_table_says_also_twice_in_a_row(api, database, what):
    for state in STATES:
        job_id, model = add_job(database, state), Model(state)
        for _ in range(2):
            model, status, code = model.after(what)
            answer = send(api, job_id, what)
            assert code_of(answer) == (status, code), (state, answer.text)
            if code:
                problem(answer, status, code)
            assert job_as_shown(api, database, job_id) == as_people_see(model), state
            if status == 200 and what != "delete":
                assert answer.json()["state"] == model.state


@pytest.mark.parametrize("what", [what for what in REQUESTS if what not in {"stop", "patch labels", "patch notes"}])
def test_a_refusal_names_the_states_that_allow_it(api, database, what):
    row = ROWS[REQUESTS[what][0]]
    allowed = {state for state, cell in row.items() if cell != "409"}
    for state in set(STATES) - allowed:
        detail = problem(send(api, add_job(database, state), what), 409, "not_allowed_in_state")["detail"]
        assert f"is {state} and cannot be" in detail
        assert set(detail.partition(": only ")[2].removesuffix(" jobs can be").split(", ")) == allowed


def test_stop_on_a_job_that_is_no_search_says_what_to_do_instead(api, database):
    detail = problem(send(api, add_job(database, "running"), "stop"), 409, "not_for_this_kind")["detail"]
    assert "has no trials to finish" in detail
    assert "pause or cancel it" in detail


# --- two callers at once ----------------------------------------------------------------------------------------------


def at_once(*calls: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """Made at the same moment, each on a thread of its own."""
    barrier = Barrier(len(calls))

    def call(one: Callable[[], httpx.Response]) -> httpx.Response:
        barrier.wait(timeout=30)
        return one()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def serial(state: str, first: str, second: str) -> tuple[Model, tuple[int, str | None], tuple[int, str | None]]:
    """The job and the two answers, made one after the other."""
    model, *one = Model(state).after(first)
    model, *two = model.after(second)
    return as_people_see(model), (one[0], one[1]), (two[0], two[1])


@pytest.mark.both_databases
@pytest.mark.parametrize("state", STATES)
def test_two_requests_at_once_end_as_if_one_had_come_first(clients: Clients, database, state):
    other = TestClient(clients.alice.app, headers=dict(clients.alice.headers))
    pairs = list(itertools.combinations_with_replacement(REQUESTS, 2))
    jobs = add_jobs(database, state, len(pairs))
    for job_id, (one, two) in zip(jobs, pairs, strict=True):
        calls = [
            lambda job_id=job_id, one=one: send(clients.alice, job_id, one),
            lambda job_id=job_id, two=two: send(other, job_id, two),
        ]
        answers = [code_of(answer) for answer in at_once(*calls)]
        found = (job_as_shown(clients.alice, database, job_id), *answers)
        forth, (end, *back) = serial(state, one, two), serial(state, two, one)
        assert found in (forth, (end, *reversed(back))), (one, two)


def add_jobs(database: Database, state: str, count: int) -> list[str]:
    """Many in one transaction."""
    made = add_job(database, state)
    with database.session() as session:
        model = session.get(Job, made)
        fields = {column.name: getattr(model, column.name) for column in Job.__table__.columns}
        ids = [new_id() for _ in range(count)]
        session.add_all(Job(**(fields | {"id": job_id})) for job_id in ids)
    return ids


@pytest.mark.both_databases
def test_the_same_key_sent_twice_at_once_makes_one_job(clients: Clients, database):
    other = TestClient(clients.alice.app, headers=dict(clients.alice.headers))
    for turn in range(10):
        key = {"Idempotency-Key": f"nightly-{turn}"}
        calls = [lambda c=client, k=key: c.post("/v1/jobs", json=SPEC, headers=k) for client in (clients.alice, other)]
        answers = at_once(*calls)
        assert sorted(answer.status_code for answer in answers) == [200, 201]
        (job_id,) = {answer.json()["id"] for answer in answers}
        assert [event.state for event in events_of(database, job_id)] == ["queued"]
    assert len(clients.alice.get("/v1/jobs").json()["items"]) == 10


# --- what a verb takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["resume", "retry"])
@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        (b'{"from_scrath": true}', "spec_invalid", "/from_scrath"),
        (b'{"resources": 4}', "spec_invalid", "/resources"),
        (b'{"resources": ', "json_invalid", None),
        (b"[]", "body_invalid", None),
    ],
)
def test_a_wrong_body_is_refused_and_changes_nothing(api, database, verb, body, code, pointer):
    state = {"resume": "paused", "retry": "failed"}[verb]
    job_id = add_job(database, state)
    found = problem(post(api, body, f"/v1/jobs/{job_id}/{verb}"), 422, code)
    if pointer:
        assert [p["pointer"] for p in found["problems"]] == [pointer]
    assert job_as_shown(api, database, job_id) == Model(state)

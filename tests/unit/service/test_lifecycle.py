"""The states there are, and the one function that changes a job's."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from service_fakes import add_job, events_of, job_of
from verb_table import STATES

from service.controller.decide import Ended, settle
from service.db.database import Database
from service.db.tables import Job
from service.jobs import repository
from service.jobs.lifecycle import POLICIES, TRANSITIONS, note, transition
from service.jobs.state import State
from trainer.protocol.outcome import Reason

# What may follow a state.
FOLLOWING = {
    "queued": "starting paused cancelled succeeded failed",
    "starting": "running recovering pausing cancelling paused succeeded failed cancelled",
    "running": "recovering pausing cancelling paused succeeded failed cancelled",
    "recovering": "starting pausing cancelling succeeded failed",
    "pausing": "paused cancelling succeeded failed",
    "paused": "queued cancelled succeeded",
    "cancelling": "cancelled succeeded",
    "succeeded": "queued",
    "failed": "queued",
    "cancelled": "queued",
}


def test_the_transitions_are_those_and_no_others():
    assert {a.value: {b.value for b in found} for a, found in TRANSITIONS.items()} == {
        a: set(found.split()) for a, found in FOLLOWING.items()
    }


@pytest.mark.both_databases
@pytest.mark.parametrize(("begin", "end"), list(itertools.product(STATES, STATES)))
def test_a_transition_writes_one_event_or_raises_and_writes_nothing(database, begin, end):
    job_id = add_job(database, begin)
    if end in FOLLOWING[begin].split():
        with database.session() as session:
            transition(session, repository.get(session, job_id), State(end), Reason.DATA_ERROR, "because", "eve")
        events = events_of(database, job_id)
        assert [(e.state, e.reason, e.message, e.actor) for e in events] == [(end, "data_error", "because", "eve")]
        after = job_of(database, job_id)
        assert (after.state, after.reason, after.message) == (end, "data_error", "because")
        assert (after.ended_at is not None) == (end in {"succeeded", "failed", "cancelled"})
    else:
        with pytest.raises(ValueError, match=f"from {begin} to {end}"), database.session() as session:
            transition(session, repository.get(session, job_id), State(end), None, "", "eve")
        assert job_of(database, job_id).state == begin
        assert events_of(database, job_id) == []


def test_a_rolled_back_transition_leaves_no_event(database):
    job_id = add_job(database, "running")

    def fail_afterwards() -> None:
        with database.session() as session:
            transition(session, repository.get(session, job_id), State.FAILED, None, "", "controller")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_afterwards()
    assert job_of(database, job_id).state == "running"
    assert events_of(database, job_id) == []


def test_training_begins_once_and_a_retried_job_has_not_ended(database):
    job_id = add_job(database, "starting")

    def go(*states: State) -> None:
        for state in states:
            with database.session() as session:
                transition(session, repository.get(session, job_id), state, None, "", "controller")

    go(State.RUNNING)
    first = job_of(database, job_id).started_at
    assert first is not None
    go(State.RECOVERING, State.STARTING, State.RUNNING, State.FAILED)
    assert job_of(database, job_id).started_at == first
    assert job_of(database, job_id).ended_at is not None
    go(State.QUEUED)
    assert job_of(database, job_id).ended_at is None


@pytest.mark.both_databases
def test_a_job_that_waits_again_has_waited_since_then(database):
    """Who has waited longest starts first: a job that is resumed, retried or recovers goes behind those before it."""
    long_ago = datetime(2025, 6, 1, tzinfo=UTC)
    job_id = add_job(database, "starting", waiting_since=long_ago)

    def waiting_since_after(state: State) -> datetime:
        with database.session() as session:
            transition(session, repository.get(session, job_id), state, None, "", "controller")
        return job_of(database, job_id).waiting_since

    assert waiting_since_after(State.RUNNING) == long_ago
    recovering = waiting_since_after(State.RECOVERING)
    assert recovering > long_ago
    assert [waiting_since_after(state) for state in (State.PAUSING, State.PAUSED)] == [recovering] * 2
    resumed = waiting_since_after(State.QUEUED)
    assert resumed > recovering
    assert waiting_since_after(State.CANCELLED) == resumed
    assert waiting_since_after(State.QUEUED) > resumed


@pytest.mark.both_databases
def test_a_note_is_written_once_until_it_changes(database: Database):
    job_id = add_job(database)
    for message in ("waits", "waits", "waits longer", "waits longer", "waits"):
        with database.session() as session:
            note(session, repository.get(session, job_id), Reason.INSUFFICIENT_RESOURCES, message, "controller")
    events = events_of(database, job_id)
    assert [event.message for event in events] == ["waits", "waits longer", "waits"]
    assert {(event.state, event.reason) for event in events} == {("queued", "insufficient_resources")}


@pytest.mark.parametrize("state", ["starting", "running", "pausing", "cancelling"])
def test_every_end_of_an_attempt_moves_its_job_along_a_transition(state):
    """No attempt can end so that its job is stuck."""
    ends = ["succeeded", "failed", "cancelled", "paused", "lost"]
    for end, reason, failures in itertools.product(ends, [None, *POLICIES], [0, 9]):
        job = Job(kind="pretrain", state=state, failures=failures, restarts=0)
        step = settle(job, Ended(end, reason, "said"), max_failures=3, continuation="start from the beginning")
        assert step.state in TRANSITIONS[State(state)], (end, reason, failures)
        assert step.message

"""What people ask of a job while the reconciler makes its rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from service_fakes import attempts_of, job_of
from service_world import World

from service.jobs.lifecycle import Verb
from service.jobs.schemas import RetryBody
from service.jobs.state import State
from trainer.protocol.command import Command
from trainer.protocol.outcome import Outcome, Reason

pytestmark = pytest.mark.both_databases


@pytest.mark.parametrize(
    ("verb", "ending", "ended"), [("cancel", "cancelling", "cancelled"), ("pause", "pausing", "paused")]
)
def test_a_running_job_ends_by_command(world, verb, ending, ended):
    job_id = world.running()
    assert world.verb(job_id, Verb(verb)) == ending
    world.rounds(3)
    assert world.mlflow.commands == [Command(attempt=1, generation=1, action=verb)]
    assert world.state(job_id) == ending
    world.end_attempt(job_id, Outcome(state=ended, checkpoint="checkpoints/a1/9"))
    world.rounds()
    assert world.state(job_id) == ended
    assert world.ray.stopped == []
    assert attempts_of(world.database, job_id)[0].checkpoint == "checkpoints/a1/9"


def test_cancelling_while_pausing_sends_a_second_command(world):
    job_id = world.running()
    world.verb(job_id, Verb.PAUSE)
    world.rounds()
    world.verb(job_id, Verb.CANCEL)
    world.rounds(2)
    assert [(c.generation, c.action) for c in world.mlflow.commands] == [(1, "pause"), (2, "cancel")]


def test_a_starting_job_is_stopped_through_ray(world):
    job_id = world.add()
    world.rounds(2)
    world.verb(job_id, Verb.CANCEL)
    world.rounds(3)
    assert world.ray.stopped == [f"{job_id}-a1"], "asked once"
    world.end_attempt(job_id, None, ray="STOPPED")
    world.rounds()
    assert world.state(job_id) == "cancelled"
    assert job_of(world.database, job_id).reason == "cancelled_by_user"
    assert world.mlflow.runs[f"run-{job_id}"].status == "KILLED"


def test_a_deaf_attempt_is_stopped_past_the_deadline(world):
    job_id = world.running()
    world.verb(job_id, Verb.CANCEL)
    world.rounds(2)
    assert world.ray.stopped == []
    world.passes(job_id, "command", 121)
    world.rounds()
    assert world.ray.stopped == [f"{job_id}-a1"]


@pytest.mark.parametrize("trouble", ["away", "removed"])
@pytest.mark.parametrize(("verb", "ended"), [("cancel", "cancelled"), ("pause", "paused")])
def test_an_attempt_that_mlflow_cannot_tell_is_stopped_past_the_deadline(world, verb, ended, trouble):
    job_id = world.running()
    run = world.mlflow.runs[f"run-{job_id}"]
    if trouble == "away":
        world.mlflow.reachable = False
    else:
        del world.mlflow.runs[f"run-{job_id}"]
    world.verb(job_id, Verb(verb))
    world.rounds(3)
    assert world.ray.stopped == [], "it may be told yet"
    (attempt,) = attempts_of(world.database, job_id)
    assert attempt.command is None
    assert attempt.commanded_at is not None
    world.passes(job_id, "command", 121)
    world.rounds(2)
    assert world.ray.stopped == [f"{job_id}-a1"], "asked once"
    world.end_attempt(job_id, None, ray="STOPPED")
    world.mlflow.reachable = True
    world.rounds()
    assert world.state(job_id) == ended
    assert run.status == ({"cancel": "KILLED", "pause": "SCHEDULED"}[verb] if trouble == "away" else "RUNNING")


def test_an_mlflow_that_is_back_in_time_tells_it(world):
    job_id = world.running()
    world.mlflow.reachable = False
    world.verb(job_id, Verb.PAUSE)
    world.rounds(2)
    world.mlflow.reachable = True
    world.rounds(2)
    assert world.mlflow.commands == [Command(attempt=1, generation=1, action="pause")]
    assert world.ray.stopped == []


@pytest.mark.parametrize(("verb", "ended"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_between_two_attempts_ends_at_once(world, verb, ended):
    job_id = world.running()
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    assert world.state(job_id) == "recovering"
    world.verb(job_id, Verb(verb))
    world.rounds()
    assert world.state(job_id) == ended
    assert len(attempts_of(world.database, job_id)) == 1


def cancel_within(world: World, part: object, method: str, job_id: str) -> None:
    """Cancel the job while the reconciler is inside this call."""
    original: Callable[..., Any] = getattr(part, method)

    def meanwhile(*args: Any, **named: Any) -> Any:
        setattr(part, method, original)
        world.verb(job_id, Verb.CANCEL)
        return original(*args, **named)

    setattr(part, method, meanwhile)


@pytest.mark.parametrize(
    ("part", "method", "state"),
    [("mlflow", "make_run", "queued"), ("ray", "submit", "queued"), ("ray", "submissions", "starting")],
)
def test_a_cancel_amid_the_start_wins(world, part, method, state):
    job_id = world.add()
    if state == "starting":
        world.rounds()
    cancel_within(world, getattr(world, part), method, job_id)
    world.rounds(3)
    if world.state(job_id) == "cancelling":
        assert world.ray.stopped == [f"{job_id}-a1"]
        world.end_attempt(job_id, None, ray="STOPPED")
        world.rounds(3)
    assert world.state(job_id) == "cancelled"
    assert world.states(job_id).count("cancelled") == 1
    if method == "make_run":
        assert world.ray.requests == []
        assert attempts_of(world.database, job_id) == []


@pytest.mark.parametrize("method", ["run", "end_run"])
@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_a_cancel_amid_the_end_leaves_one_terminal_state(world, method, end):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state=end, reason=None if end == "succeeded" else Reason.DATA_ERROR))
    cancel_within(world, world.mlflow, method, job_id)
    world.rounds(3)
    final = "succeeded" if end == "succeeded" else "cancelled"
    assert world.state(job_id) == final
    assert [s for s in world.states(job_id) if State(s).terminal] == [final]
    assert world.mlflow.runs[f"run-{job_id}"].status == ("FINISHED" if final == "succeeded" else "KILLED")


@pytest.mark.parametrize(("from_scratch", "since"), [(False, 1), (True, 2)])
def test_a_retry_is_the_same_job_with_the_next_attempt(world, from_scratch, since):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR), ray="FAILED")
    world.rounds()
    assert world.state(job_id) == "failed"
    assert world.verb(job_id, Verb.RETRY, RetryBody(from_scratch=from_scratch)) == "queued"
    world.rounds()
    assert [(r.attempt, r.since_attempt) for r in world.ray.requests] == [(1, 1), (2, since)]
    assert world.ray.requests[1].run_id == world.ray.requests[0].run_id
    assert world.mlflow.runs[f"run-{job_id}"].status == "RUNNING"
    world.run_attempt(job_id, 2)


def test_a_resumed_job_goes_on_with_the_same_run(world):
    job_id = world.running()
    world.verb(job_id, Verb.PAUSE)
    world.rounds()
    world.end_attempt(job_id, Outcome(state="paused", checkpoint="checkpoints/a1/9"))
    world.rounds()
    assert world.verb(job_id, Verb.RESUME) == "queued"
    world.rounds()
    assert [(r.attempt, r.since_attempt) for r in world.ray.requests] == [(1, 1), (2, 1)]
    world.run_attempt(job_id, 2)
    assert world.states(job_id) == ["starting", "running", "pausing", "paused", "queued", "starting", "running"]

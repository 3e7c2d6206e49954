"""What a job says while something troubles it, and that it stops saying so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from service_fakes import attempts_of, events_of, job_of
from service_world import World

from service.db.tables import Attempt
from service.jobs.lifecycle import Verb
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason

FULL = "The checkpoint of step 9 was not stored: no space left on device"


def said(world: World, job_id: str) -> tuple[str, str | None, str]:
    job = job_of(world.database, job_id)
    return job.state, job.reason, job.message


def notice(world: World, job_id: str, text: str) -> None:
    """What a running attempt says of its trouble."""
    world.mlflow.runs[f"run-{job_id}"].tags[names.TAG_NOTICE] = text
    world.rounds(2)


def test_the_trouble_of_a_running_attempt_shows_in_its_job_until_it_ends(world):
    job_id = world.running()
    fine = said(world, job_id)
    assert fine == ("running", None, "Attempt 1 is training.")
    notice(world, job_id, FULL)
    assert said(world, job_id) == ("running", "storage_error", FULL)
    notice(world, job_id, "")
    assert said(world, job_id) == fine
    told = [(event.state, event.reason, event.actor) for event in events_of(world.database, job_id)]
    expected = [("starting", None), ("running", None), ("running", "storage_error"), ("running", None)]
    assert told == [(state, reason, "controller") for state, reason in expected]


def test_the_trouble_of_an_attempt_is_not_the_next_ones(world):
    job_id = world.running()
    notice(world, job_id, FULL)
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST, message="A node was lost."))
    world.rounds()
    world.due(job_id)
    world.rounds()
    world.run_attempt(job_id, 2)
    assert said(world, job_id) == ("running", None, "Attempt 2 is training.")


def test_a_trouble_does_not_hide_what_a_person_asked_for(world):
    job_id = world.running()
    world.verb(job_id, Verb.PAUSE)
    notice(world, job_id, FULL)
    assert said(world, job_id)[:2] == ("pausing", "paused_by_user")


def test_an_attempt_that_is_slow_to_start_is_said_to_be_once(world):
    job_id = world.add()
    world.rounds(2)
    with world.database.session() as session:
        session.get(Attempt, (job_id, 1)).started_at = datetime.now(UTC) - timedelta(seconds=91)
    world.rounds(3)
    assert "Attempt 1 is slow to start" in said(world, job_id)[2]
    assert len(events_of(world.database, job_id)) == 1, "what it waits for is no part of its history"
    world.run_attempt(job_id)
    assert said(world, job_id)[2] == "Attempt 1 is training."


def test_an_ended_attempt_waits_for_mlflow_and_says_so(world):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.mlflow.reachable = False
    world.rounds(3)
    assert said(world, job_id) == (
        "running",
        None,
        "Attempt 1 has ended; its metrics are not known yet: MLflow does not answer.",
    )
    assert len(events_of(world.database, job_id)) == 2
    assert attempts_of(world.database, job_id)[0].ended_at is None
    world.mlflow.reachable = True
    world.rounds()
    assert said(world, job_id)[0] == "succeeded"


def test_an_ended_attempt_waits_for_the_storage_and_says_so(world, root):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="succeeded"))
    away = root.rename(root.with_name("unmounted"))
    world.rounds(3)
    state, reason, message = said(world, job_id)
    assert (state, reason) == ("running", None)
    assert message.startswith(
        "Attempt 1 has ended; its outcome is not known yet: the artifact storage does not answer:"
    )
    assert "check that its disk is mounted" in message
    assert len(events_of(world.database, job_id)) == 2
    away.rename(root)
    world.rounds()
    assert said(world, job_id)[0] == "succeeded"


def test_what_a_person_asks_for_meanwhile_keeps_its_reason(world, root):
    """Also where it is asked for while the reconciler looks at the job."""
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="cancelled"))
    away = root.rename(root.with_name("unmounted"))
    run = world.mlflow.run

    def cancelled_meanwhile(run_id: str) -> object:
        world.mlflow.run = run
        world.verb(job_id, Verb.CANCEL)
        return run(run_id)

    world.mlflow.run = cancelled_meanwhile
    world.rounds()
    assert said(world, job_id)[:2] == ("cancelling", "cancelled_by_user")
    away.rename(root)
    world.rounds()
    assert said(world, job_id)[:2] == ("cancelled", "cancelled_by_user")


@pytest.mark.parametrize("state", ["queued", "recovering"])
def test_a_waiting_job_says_that_ray_does_not_answer(world, state):
    if state == "queued":
        job_id = world.add()
    else:
        job_id = world.running()
        world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST, message="A node was lost."))
        world.rounds()
        world.not_due(job_id)
    reason = job_of(world.database, job_id).reason
    before = len(events_of(world.database, job_id))
    world.ray.reachable = False
    world.rounds(3)
    text = "Waits for the cluster: Ray does not answer: connection refused."
    assert said(world, job_id) == (state, reason, text)
    assert len(events_of(world.database, job_id)) == before
    world.ray.reachable = True
    world.due(job_id)
    world.rounds()
    assert said(world, job_id)[:2] == ("starting", None)


def test_a_waiting_job_says_that_mlflow_does_not_answer(world):
    job_id = world.add()
    world.mlflow.reachable = False
    world.rounds(3)
    text = "Waits for MLflow, which stores the job's run: MLflow does not answer: connection refused."
    assert said(world, job_id) == ("queued", None, text)
    assert world.ray.requests == []
    world.mlflow.reachable = True
    world.rounds()
    assert said(world, job_id)[0] == "starting"

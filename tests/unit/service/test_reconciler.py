"""Rounds of the reconciler over stand-ins for Ray and MLflow, a real database and real files."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from service_fakes import FakeMlflow, FakeRay, add_job, attempts_of, events_of, job_of, spec_with

from service.adapters.ray_cluster import RayState
from service.adapters.storage import Artifacts
from service.auth import Caller, Role
from service.db import Database
from service.deps import Parts
from service.jobs import repository
from service.jobs.lifecycle import Verb, transition
from service.jobs.reconciler import Reconciler
from service.jobs.schemas import State
from service.jobs.service import apply_verb
from service.settings import Settings
from trainer.spec import names
from trainer.spec.job import Command, Outcome, Reason


class World:
    """A reconciler and all it looks at."""

    def __init__(self, settings: Settings, database: Database, ray: FakeRay, mlflow: FakeMlflow) -> None:
        self.database, self.ray, self.mlflow = database, ray, mlflow
        artifacts = Artifacts(settings.artifact_root)
        self.reconciler = Reconciler(settings, database, ray, mlflow, artifacts)
        self.parts = Parts(settings, database, ray, mlflow, artifacts, self.reconciler)

    def add(self, **fields: Any) -> str:
        return add_job(self.database, **fields)

    def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            self.reconciler.round()

    def state(self, job_id: str) -> str:
        return job_of(self.database, job_id).state

    def states(self, job_id: str) -> list[str]:
        return [event.state for event in events_of(self.database, job_id)]

    def verb(self, job_id: str, verb: Verb, from_scratch: bool = False) -> str:
        return apply_verb(self.parts, Caller("alice", Role.SUBMITTER), job_id, verb, from_scratch).state

    def run_attempt(self, job_id: str, number: int = 1) -> None:
        """Bring a job with a submitted attempt to running."""
        self.ray.jobs[f"{job_id}-a{number}"] = RayState.RUNNING
        self.rounds()
        self.mlflow.beat(job_id, number, time.time())
        self.rounds()
        assert self.state(job_id) == "running"

    def end_attempt(self, job_id: str, outcome: Outcome | None, number: int = 1, ray: str = "SUCCEEDED") -> None:
        """What an attempt leaves, and Ray's word on it."""
        if outcome:
            file = Path(job_of(self.database, job_id).artifact_uri) / names.outcome_file(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(outcome.model_dump_json())
        self.ray.jobs[f"{job_id}-a{number}"] = RayState(ray)

    def due(self, job_id: str) -> None:
        """Let the back-off of a recovering job pass."""
        with self.database.session() as session:
            repository.get(session, job_id).not_before = datetime(2020, 1, 1, tzinfo=UTC)

    def running(self, **fields: Any) -> str:
        job_id = self.add(**fields)
        self.rounds()
        self.run_attempt(job_id)
        return job_id


@pytest.fixture
def world(settings: Settings, database: Database, ray: FakeRay, mlflow: FakeMlflow) -> World:
    return World(settings, database, ray, mlflow)


def test_a_job_goes_from_queued_to_succeeded(world, root):
    job_id = world.add(spec=spec_with(register_as="digits"))
    world.rounds()
    assert world.state(job_id) == "starting"
    (request,) = world.ray.requests
    assert (request.job_id, request.attempt, request.since_attempt) == (job_id, 1, 1)
    assert (request.run_id, request.tracking_uri) == (f"run-{job_id}", "http://mlflow.test")
    assert request.spec.resources.workers == 1
    assert request.spec.optimization.micro_batch_size != "auto"
    tags = world.mlflow.runs[request.run_id].tags
    assert tags[names.TAG_METHOD] == "rc_mae"
    assert tags[names.TAG_SPEC] == request.spec.sha256()

    world.rounds(3)
    assert world.state(job_id) == "starting", "no heartbeat yet"
    world.run_attempt(job_id)
    job = job_of(world.database, job_id)
    assert job.started_at is not None
    assert job.resolved

    run = world.mlflow.runs[job.run_id]
    run.metrics |= {names.SAMPLES: 640.0, names.EPOCH: 0.5, names.LOSS: 0.7, names.IMAGES_PER_S: 64.0}
    run.tags |= {names.TAG_STEPS: "50", names.TAG_IMAGES: "1797"}
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.dataset_images == 1797
    assert {k: job.progress[k] for k in ("step", "steps", "samples", "epoch", "epochs", "loss", "eta_s")} == {
        "step": 10, "steps": 50, "samples": 640, "epoch": 0.5, "epochs": 2, "loss": 0.7, "eta_s": 40.0
    }  # fmt: skip

    run.metrics |= {names.LOSS: 0.5, names.LINEAR_TOP1: 0.9, "train/lr": 0.1}
    world.mlflow.register("digits", 1, "job-other", root)
    world.mlflow.register("digits", 2, job_id, root)
    world.end_attempt(job_id, Outcome(state="succeeded", checkpoint="checkpoints/a1/50"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.state == "succeeded"
    assert job.ended_at is not None
    assert job.result["backbone"] == {"name": "digits", "version": 2}
    assert job.result["metrics"][names.LINEAR_TOP1] == 0.9
    assert job.result["metrics"][names.LOSS] == 0.5
    assert "train/lr" not in job.result["metrics"]
    assert run.status == "FINISHED"
    (attempt,) = attempts_of(world.database, job_id)
    assert (attempt.state, attempt.checkpoint) == ("succeeded", "checkpoints/a1/50")
    assert attempt.ended_at is not None
    assert world.states(job_id) == ["starting", "running", "succeeded"]
    world.rounds(3)
    assert world.states(job_id) == ["starting", "running", "succeeded"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_submission_without_an_answer_is_not_made_twice(world, taken):
    world.ray.answers_lost = 1
    if not taken:
        world.ray.answers_lost = 0
        submit, calls = world.ray.submit, []

        def refuse_first(submission_id: str, request: object) -> None:
            calls.append(submission_id)
            world.ray.reachable = len(calls) > 1
            try:
                submit(submission_id, request)
            finally:
                world.ray.reachable = True

        world.ray.submit = refuse_first
    job_id = world.add()
    world.rounds(4)
    assert list(world.ray.jobs) == [f"{job_id}-a1"]
    assert len(world.ray.requests) == 1
    (attempt,) = attempts_of(world.database, job_id)
    assert attempt.accepted
    assert world.state(job_id) == "starting"


def test_a_cluster_out_of_reach_changes_nothing(world):
    job_id = world.running()
    world.ray.reachable = False
    world.rounds(20)
    assert world.state(job_id) == "running"
    assert world.states(job_id) == ["starting", "running"]
    assert [attempt.ended_at for attempt in attempts_of(world.database, job_id)] == [None]
    queued = world.add()
    world.rounds(3)
    assert world.state(queued) == "queued"
    world.ray.reachable = True
    world.rounds()
    assert world.state(job_id) == "running"
    assert world.state(queued) == "starting"


def test_mlflow_out_of_reach_delays_but_ends_nothing(world):
    job_id = world.running()
    waiting = world.add()
    world.mlflow.reachable = False
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds(5)
    assert (world.state(job_id), world.state(waiting)) == ("running", "queued")
    world.mlflow.reachable = True
    world.rounds()
    assert (world.state(job_id), world.state(waiting)) == ("succeeded", "starting")


def test_a_head_that_forgot_the_job_costs_an_attempt_but_no_failure(world):
    job_id = world.running()
    world.ray.jobs.clear()
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures, job.restarts) == ("recovering", "cluster_lost", 0, 1)
    assert job.not_before > datetime.now(UTC) - timedelta(seconds=1)
    with world.database.session() as session:
        repository.get(session, job_id).not_before = datetime.now(UTC) + timedelta(hours=1)
    world.rounds(3)
    assert world.state(job_id) == "recovering", "the back-off has not passed"
    world.due(job_id)
    world.rounds()
    assert world.state(job_id) == "starting"
    assert [request.attempt for request in world.ray.requests] == [1, 2]
    assert [(a.number, a.state) for a in attempts_of(world.database, job_id)] == [(1, "lost"), (2, "submitted")]
    assert len(world.mlflow.runs) == 1, "all attempts share the job's run"
    world.run_attempt(job_id, 2)


@pytest.mark.parametrize(
    ("reason", "state", "failures"),
    [("data_error", "failed", 0), ("loss_not_finite", "failed", 0), ("worker_failed", "recovering", 1)],
)
def test_a_failure_goes_by_its_reason(world, reason, state, failures):
    job_id = world.running()
    outcome = Outcome(state="failed", reason=Reason(reason), message="All of it is broken.")
    world.end_attempt(job_id, outcome, ray="FAILED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == (state, reason, failures)
    assert job.message.startswith("All of it is broken.")
    assert world.mlflow.runs[job.run_id].status == ("FAILED" if state == "failed" else "RUNNING")


def test_failures_run_out(world):
    job_id = world.running(spec=spec_with(retry={"max_failures": 2}))
    for number in (1, 2, 3):
        if number > 1:
            world.due(job_id)
            world.rounds()
            world.run_attempt(job_id, number)
        world.end_attempt(job_id, None, number, ray="FAILED")
        world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("failed", "worker_failed", 3)
    assert "3 failures, 2 allowed" in job.message
    assert world.states(job_id).count("recovering") == 2


def test_an_attempt_that_never_ran_tells_the_end_of_its_log(world):
    job_id = world.add()
    world.rounds(2)
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason) == ("recovering", "start_failed")
    assert f"log of {job_id}-a1" in job.message


def test_one_jobs_trouble_does_not_stop_another(world):
    troubled, sound = world.running(), world.running()
    world.ray.broken.add(f"{troubled}-a1")
    world.end_attempt(sound, Outcome(state="succeeded"))
    queued = world.add()
    world.rounds()
    assert world.state(troubled) == "running"
    assert world.state(sound) == "succeeded"
    assert world.state(queued) == "starting"


@pytest.mark.parametrize(("verb", "ending", "ended"), [("cancel", "cancelling", "cancelled"), ("pause", "pausing", "paused")])
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
    world.rounds()
    assert world.ray.stopped == []
    with world.database.session() as session:
        attempt = repository.last_attempt(session, repository.get(session, job_id))
        attempt.commanded_at = datetime.now(UTC) - timedelta(seconds=121)
    world.rounds()
    assert world.ray.stopped == [f"{job_id}-a1"]


@pytest.mark.parametrize(("verb", "ended"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_job_between_two_attempts_ends_at_once(world, verb, ended):
    job_id = world.running()
    world.ray.jobs.clear()
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
    [("mlflow", "make_run", "queued"), ("ray", "submit", "queued"), ("ray", "state", "starting")],
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
    assert world.verb(job_id, Verb.RETRY, from_scratch) == "queued"
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


def test_jobs_wait_for_room_and_say_so_once(world):
    first, second, third = world.add(), world.add(), world.add()
    world.rounds(5)
    assert [world.state(j) for j in (first, second, third)] == ["starting", "starting", "queued"]
    job = job_of(world.database, third)
    assert (job.reason, job.message) == ("insufficient_resources", "Waits for resources: needs 2 CPUs, 0 free, 4 in the cluster.")
    assert len(events_of(world.database, third)) == 1
    world.run_attempt(first)
    world.end_attempt(first, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(third) == "starting"


def test_a_silent_attempt_is_stopped_and_tried_again(world, monkeypatch):
    job_id = world.running()
    monkeypatch.setattr(world.reconciler, "_mlflow_since", time.monotonic() - 1000)
    world.mlflow.beat(job_id, 1, time.time() - 500)
    world.rounds(2)
    assert world.ray.stopped == [f"{job_id}-a1"]
    world.end_attempt(job_id, None, ray="STOPPED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "worker_failed", 1)


def test_a_restarted_service_goes_on_where_the_last_one_was(world, settings, ray, mlflow):
    job_id = world.add()
    world.rounds()
    again = World(settings, world.database, ray, mlflow)
    again.run_attempt(job_id)
    again.end_attempt(job_id, Outcome(state="succeeded"))
    again.rounds()
    assert again.state(job_id) == "succeeded"
    assert len(ray.requests) == 1


def test_no_transaction_is_open_while_ray_or_mlflow_are_asked(world):
    """Another writer gets through during every call."""
    other = world.add(state="paused")
    calls = []

    def writing(part: object, method: str) -> None:
        original = getattr(part, method)

        def call(*args: Any) -> Any:
            calls.append(method)
            with world.database.session() as session:
                job = repository.get(session, other)
                transition(session, job, State.QUEUED if job.state == "paused" else State.PAUSED, None, "", "eve")
            return original(*args)

        setattr(part, method, call)

    for method in ("shape", "submit", "state"):
        writing(world.ray, method)
    for method in ("ping", "make_run", "run", "end_run"):
        writing(world.mlflow, method)
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    assert set(calls) == {"shape", "submit", "state", "ping", "make_run", "run", "end_run"}


def test_the_thread_makes_rounds_until_it_is_stopped(world):
    assert world.reconciler.stuck() is not None, "it has not been started"
    job_id = world.add()
    world.reconciler.start()
    try:
        assert world.reconciler.stuck() is None
        world.reconciler.wake()
        until = time.monotonic() + 20
        while world.state(job_id) != "starting" and time.monotonic() < until:
            time.sleep(0.01)
        assert world.state(job_id) == "starting"
    finally:
        world.reconciler.stop()
    assert world.reconciler.stuck() is not None

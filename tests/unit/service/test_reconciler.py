"""Rounds of the reconciler over stand-ins for Ray and MLflow, a real database and real files."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from service_fakes import attempts_of, events_of, job_of, spec_with
from service_world import World

from service.adapters.ray_cluster import RayState
from service.adapters.storage import Artifacts
from service.db.tables import Attempt
from service.jobs import repository
from service.jobs.lifecycle import Verb, delete
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.progress import Activity, Newest
from trainer.spec import metric_keys

pytestmark = pytest.mark.both_databases


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
    assert job.resolved_spec

    run = world.mlflow.runs[job.run_id]
    values = {metric_keys.SAMPLES: 640.0, metric_keys.EPOCH: 0.5, metric_keys.LOSS: 0.7, metric_keys.IMAGES_PER_S: 80.0}
    newest = Newest(attempt=1, step=10, values=values, images_per_s=64.0)
    run.tags |= {names.TAG_STEPS: "50", names.TAG_IMAGES: "1797", names.TAG_NEWEST: newest.model_dump_json()}
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.dataset_images == 1797
    assert {k: job.progress[k] for k in ("step", "steps", "samples", "epoch", "epochs", "loss", "eta_s")} == {
        "step": 10, "steps": 50, "samples": 640, "epoch": 0.5, "epochs": 2, "loss": 0.7, "eta_s": 40.0
    }  # fmt: skip

    run.metrics |= {metric_keys.SAMPLES: 3200.0, metric_keys.LOSS: 0.5, metric_keys.LINEAR_TOP1: 0.9, "train/lr": 0.1}
    world.mlflow.register("digits", 1, "job-other", root)
    world.mlflow.register("digits", 2, job_id, root)
    world.end_attempt(job_id, Outcome(state="succeeded", checkpoint="checkpoints/a1/50"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.state == "succeeded"
    assert job.ended_at is not None
    assert job.result["backbone"] == {"name": "digits", "version": 2}
    assert job.result["metrics"][metric_keys.LINEAR_TOP1] == 0.9
    assert job.result["metrics"][metric_keys.LOSS] == 0.5
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


def test_a_submission_that_has_run_is_not_made_again_by_a_head_that_forgot_it(world):
    """Its answer was lost, it ran while Ray was out of reach, and the head was restarted: its workers may live on."""
    world.ray.answers_lost = 1
    job_id = world.add()
    world.rounds()
    world.mlflow.beat(job_id, 1, time.time())
    world.ray.jobs.clear()
    world.mlflow.reachable = False
    world.rounds(2)
    assert len(world.ray.requests) == 1, "without MLflow it is not known whether it has run"
    world.mlflow.reachable = True
    world.rounds(2)
    assert len(world.ray.requests) == 1
    world.silent(job_id, 16)
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "cluster_lost", 0)
    world.due(job_id)
    world.rounds()
    assert [request.attempt for request in world.ray.requests] == [1, 2]


def test_a_submission_that_has_ended_is_not_made_again_by_a_head_that_forgot_it(world):
    """It ended before it showed life in MLflow: its outcome tells."""
    world.ray.answers_lost = 1
    job_id = world.add()
    world.rounds()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR, message="No images."))
    world.ray.jobs.clear()
    world.rounds(2)
    assert len(world.ray.requests) == 1
    assert (world.state(job_id), job_of(world.database, job_id).reason) == ("failed", "data_error")


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


def test_a_storage_out_of_reach_delays_but_ends_nothing(world, root):
    job_id, other = world.running(), world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR, message="No images."))
    away = root.rename(root.with_name("unmounted"))
    world.rounds(5)
    assert world.state(job_id) == "running"
    world.verb(other, Verb.PAUSE)
    world.rounds()
    assert world.state(other) == "pausing", "the others go on"
    assert [command.action for command in world.mlflow.commands] == ["pause"]
    away.rename(root)
    world.rounds()
    assert (world.state(job_id), job_of(world.database, job_id).reason) == ("failed", "data_error")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"state": "fine"}', b"\xff\xfe", b'{"state": "succeeded", "reason": 3}']
)
def test_an_outcome_that_cannot_be_read_ends_the_attempt(world, content):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="succeeded"))
    (Path(job_of(world.database, job_id).artifact_uri) / names.outcome_file(1)).write_bytes(content)
    world.rounds()
    (attempt,) = attempts_of(world.database, job_id)
    assert (world.state(job_id), attempt.state, attempt.reason) == ("recovering", "failed", "storage_error")
    assert f"attempts/1/outcome.json holds {len(content)} bytes that are not an outcome" in attempt.message
    assert job_of(world.database, job_id).failures == 1


def test_an_attempt_without_an_outcome_shows_the_end_of_rays_log(world):
    job_id = world.running()
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    (attempt,) = attempts_of(world.database, job_id)
    assert (attempt.state, attempt.reason) == ("lost", "worker_failed")
    assert f"Its log ends with: log of {job_id}-a1" in attempt.message


def test_a_recovering_job_says_what_it_waits_for_and_keeps_its_reason(world):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST, message="A node was lost."))
    world.ray.cpus = 1
    world.rounds()
    world.due(job_id)
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "node_lost", 0)
    assert "needs 2 CPUs, 1 in the cluster" in job.message
    world.ray.cpus = 4
    world.rounds()
    assert world.state(job_id) == "starting"


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
    world.rounds(3)
    assert world.state(job_id) == "running", "its workers may live on other nodes: their heartbeats are waited for"
    world.silent(job_id, 16)
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


def test_a_job_whose_run_was_removed_from_mlflow_stops_no_other(world):
    troubled, sound = world.running(), world.running()
    del world.mlflow.runs[f"run-{troubled}"]
    world.end_attempt(sound, Outcome(state="succeeded"))
    world.rounds()
    queued = world.add()
    world.rounds()
    assert (world.state(troubled), world.state(sound), world.state(queued)) == ("running", "succeeded", "starting")


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_a_job_whose_run_was_removed_from_mlflow_ends_without_it(world, end):
    job_id = world.running()
    newest = Newest(attempt=1, step=10, values={metric_keys.SAMPLES: 640.0, metric_keys.LOSS: 0.7})
    world.mlflow.runs[f"run-{job_id}"].tags[names.TAG_NEWEST] = newest.model_dump_json()
    world.rounds()
    del world.mlflow.runs[f"run-{job_id}"]
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason) == ("running", "storage_error")
    assert "MLflow run was removed" in job.message
    reason = Reason.DATA_ERROR if end == "failed" else None
    world.end_attempt(job_id, Outcome(state=end, reason=reason), ray=end.upper())
    world.rounds()
    job = job_of(world.database, job_id)
    assert job.state == end
    assert "MLflow run was removed" in job.message
    if end == "succeeded":
        assert job.result["metrics"][metric_keys.LOSS] == 0.7, "as it was seen last"


def test_a_job_between_attempts_whose_run_was_removed_can_be_cancelled(world):
    job_id = world.running()
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    del world.mlflow.runs[f"run-{job_id}"]
    assert world.verb(job_id, Verb.CANCEL) == "cancelling"
    world.rounds()
    assert world.state(job_id) == "cancelled"


def test_no_attempt_starts_whose_files_lie_outside_the_artifact_root(world, tmp_path):
    """As in a copy of a state folder, where MLflow's records lead to the original's files."""
    original = tmp_path / "original"
    original.mkdir()
    recovering = world.running()
    with world.database.session() as session:
        repository.get(session, recovering).restarts = 10  # a back-off that no slow machine lets pass by itself
    world.end_attempt(recovering, Outcome(state="failed", reason=Reason.WORKER_FAILED))
    world.rounds()
    with world.database.session() as session:
        repository.get(session, recovering).artifact_uri = str(original / "run" / "artifacts")
    world.due(recovering)
    world.rounds()
    world.mlflow.root = original
    new = world.add()
    world.rounds()
    for job_id in (recovering, new):
        job = job_of(world.database, job_id)
        assert (job.state, job.reason) == ("failed", "storage_error")
        assert f"lie in {original}" in job.message
        assert "outside the artifact root" in job.message
    assert len(world.ray.requests) == 1


def test_a_job_that_ran_when_its_state_folder_was_copied_ends_in_the_copy(world, tmp_path):
    """The copy's Ray never heard of the attempt, whose outcome lies in the original's folder."""
    job_id = world.running()
    with world.database.session() as session:
        repository.get(session, job_id).artifact_uri = str(tmp_path / "original" / "run" / "artifacts")
    world.ray.jobs[f"{job_id}-a1"] = RayState.ABSENT
    world.rounds()
    world.due(job_id)
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason) == ("failed", "storage_error")
    assert f"lie in {tmp_path / 'original'}" in job.message


def test_jobs_wait_for_room_and_say_so_in_their_state_alone(world):
    first, second, third = world.add(), world.add(), world.add()
    world.rounds(5)
    assert [world.state(j) for j in (first, second, third)] == ["starting", "starting", "queued"]
    job = job_of(world.database, third)
    assert (job.reason, job.message) == (
        "insufficient_resources",
        "Waits for resources: needs 2 CPUs, 0 free, 4 in the cluster.",
    )
    assert events_of(world.database, third) == [], "why it waits is no part of its history"
    world.run_attempt(first)
    world.end_attempt(first, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(third) == "starting"


def test_a_silent_attempt_is_stopped_and_tried_again(world):
    job_id = world.running()
    world.silent(job_id, 500, mlflow_up=100)
    world.rounds(2)
    assert world.ray.stopped == [], "MLflow has not answered for long enough to know"
    world.silent(job_id, 500)
    world.rounds(2)
    assert world.ray.stopped == [f"{job_id}-a1"]
    world.end_attempt(job_id, None, ray="STOPPED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "deadline_exceeded", 1)


def test_a_silent_attempt_that_obeys_after_all_exceeded_its_deadline(world):
    """With a stop goes the command to cancel; the job was not cancelled."""
    job_id = world.running()
    world.silent(job_id, 500)
    world.rounds()
    assert world.ray.stopped == [f"{job_id}-a1"]
    world.end_attempt(job_id, Outcome(state="cancelled", checkpoint="checkpoints/a1/9"))
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "deadline_exceeded", 1)
    assert "sent no heartbeat for too long" in job.message
    assert attempts_of(world.database, job_id)[0].checkpoint == "checkpoints/a1/9"


def test_an_attempt_that_stands_still_is_stopped_and_says_so(world):
    """Its heartbeats go on: only what they say shows that nothing happens."""
    job_id = world.running()
    tags, limit = world.mlflow.runs[f"run-{job_id}"].tags, world.app_state.settings.stall_limit_s

    def look(phase: str, unchanged_s: float) -> None:
        said = Activity(attempt=1, phase=phase, step=70, unchanged_s=unchanged_s)
        tags[names.TAG_ACTIVITY] = said.model_dump_json()
        world.mlflow.beat(job_id, 1, time.time())
        world.rounds()

    for phase, unchanged_s in (("evaluating", 10 * limit), ("storing", 10 * limit), ("training", limit)):
        look(phase, unchanged_s)
        assert world.ray.stopped == [], phase
    look("training", limit + 1)
    look("training", limit + 6)
    assert world.ray.stopped == [f"{job_id}-a1"]
    assert [command.action for command in world.mlflow.commands] == ["cancel"]
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.PREEMPTED), ray="STOPPED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "stalled", 1)
    assert job.message.startswith("Training stood still at step 70 for 1801 s, and the attempt was stopped. Its logs")
    assert "RCMAE_STALL_LIMIT_S" in job.message
    (attempt,) = attempts_of(world.database, job_id)
    assert (attempt.state, attempt.reason) == ("lost", "stalled")
    world.due(job_id)
    world.rounds()
    assert [request.attempt for request in world.ray.requests] == [1, 2]
    world.run_attempt(job_id, 2)
    world.rounds(3)
    assert world.state(job_id) == "running", "what the first attempt said last does not count"


def test_a_preempted_attempt_costs_no_failure_and_leaves_its_checkpoint(world):
    job_id = world.running()
    outcome = Outcome(state="failed", reason=Reason.PREEMPTED, message="Told to.", checkpoint="checkpoints/a1/00000007")
    world.end_attempt(job_id, outcome, ray="FAILED")
    world.rounds()
    job = job_of(world.database, job_id)
    assert (job.state, job.reason, job.failures) == ("recovering", "preempted", 0)
    assert attempts_of(world.database, job_id)[0].checkpoint == "checkpoints/a1/00000007"


def test_a_restarted_service_goes_on_where_the_last_one_was(world, settings, ray, mlflow):
    job_id = world.add()
    world.rounds()
    world.context.lease.release()
    again = World(settings, world.database, ray, mlflow)
    again.run_attempt(job_id)
    again.end_attempt(job_id, Outcome(state="succeeded"))
    again.rounds()
    assert again.state(job_id) == "succeeded"
    assert len(ray.requests) == 1


def test_the_thread_makes_rounds_until_it_is_stopped(world):
    assert world.reconciler.stuck() is not None, "it has not been started"
    job_id = world.add()
    world.reconciler.start()
    try:
        assert world.reconciler.stuck() is None
        world.app_state.wake.set()
        until = time.monotonic() + 20
        while world.state(job_id) != "starting" and time.monotonic() < until:
            time.sleep(0.01)
        assert world.state(job_id) == "starting"
    finally:
        world.reconciler.stop()
    assert world.reconciler.stuck() is not None


@pytest.mark.parametrize("work", ["removal", "sweep"])
def test_rounds_go_on_while_a_storage_takes_its_time_with_what_is_deleted(world, monkeypatch, work):
    """A job's folder can hold a hundred thousand files: other jobs start and end meanwhile."""
    old = world.running()
    world.end_attempt(old, Outcome(state="failed", reason=Reason.SPEC_ERROR), ray="FAILED")
    world.rounds()
    (Path(job_of(world.database, old).artifact_uri) / names.checkpoint_folder(1) / "00000010").mkdir(parents=True)
    with world.database.session() as session:
        session.get(Attempt, (old, 1)).ended_at = datetime(2020, 1, 1, tzinfo=UTC)
        if work == "removal":
            delete(repository.get(session, old))
    entered, done = threading.Event(), threading.Event()
    monkeypatch.setattr(Artifacts, "delete", lambda *_: (entered.set(), done.wait(60)))
    world.reconciler.start()
    try:
        assert entered.wait(60)
        job_id = world.add()
        until = time.monotonic() + 60
        while world.state(job_id) != "starting" and time.monotonic() < until:
            world.app_state.wake.set()
            time.sleep(0.01)
        assert world.state(job_id) == "starting"
        assert not done.is_set()
    finally:
        done.set()
        world.reconciler.stop()


def test_a_spec_that_is_none_any_more_keeps_no_other_job_from_starting(world):
    broken, sound = world.add(), world.add()
    with world.database.session() as session:
        repository.get(session, broken).spec = {"kind": "pretrain", "from": "another version"}
    world.rounds(2)
    assert (world.state(broken), world.state(sound)) == ("queued", "starting")

"""The loop that makes jobs happen: load, look, decide, act, apply. No database transaction is open during I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowStore, MlflowUnreachable, RunView
from service.adapters.ray_cluster import ClusterUnreachable, RayCluster, RayState
from service.adapters.storage import Artifacts, StorageUnreachable
from service.db import Attempt, Database, Job, now
from service.jobs import repository
from service.jobs.decide import Decision, Ended, Patience, Seen, decide, settle
from service.jobs.lifecycle import StaleState, note, transition
from service.jobs.scheduler import Admission, Limits, Running, Waiting, admit
from service.jobs.schemas import BackboneRef, Progress, Result, State
from service.settings import Settings
from trainer.spec import names
from trainer.spec.job import AttemptRequest, Command, Outcome, Reason, parse_spec
from trainer.spec.plan import ClusterShape, gang, resolve

log = structlog.get_logger()

ACTOR = "controller"
RUN_STATUS = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}
RESULT_METRICS = ("eval/", "train/loss", "progress/")


class Reconciler:
    """One loop over all jobs, on a thread of its own."""

    def __init__(
        self, settings: Settings, database: Database, ray: RayCluster, mlflow: MlflowStore, artifacts: Artifacts
    ) -> None:
        self._settings, self._database, self._ray, self._mlflow = settings, database, ray, mlflow
        self._artifacts = artifacts
        self._patience = Patience(
            timedelta(seconds=settings.command_deadline_s), timedelta(seconds=settings.heartbeat_limit_s)
        )
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._mlflow_since: float | None = None
        self._down: dict[str, str] = {}
        self.round_at = time.monotonic()
        """When the last round ended."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the present round."""
        self._ended.set()
        self._wake.set()
        self._thread.join(timeout=60)

    def wake(self) -> None:
        """Look now: something was asked for."""
        self._wake.set()

    def stuck(self) -> float | None:
        """Seconds since the last round, where that is too long."""
        age = time.monotonic() - self.round_at
        return age if age > self._settings.stuck_after_s or not self._thread.is_alive() else None

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.round()
            except Exception:  # the loop must outlive any one round; readiness shows that it does not get on
                log.exception("round_failed")
            else:
                self.round_at = time.monotonic()
            self._wake.wait(self._settings.poll_interval_s)
            self._wake.clear()

    def round(self) -> None:
        """Look at every job once."""
        self._check_mlflow()
        with self._database.read() as session:
            jobs = repository.active(session)
        for job, attempt in jobs:
            self._guarded(job, partial(self._advance, job, attempt))
        self._start_waiting()

    def _guarded(self, job: Job, work: Callable[[], None]) -> None:
        """One job's trouble must not stop the others."""
        try:
            work()
        except StaleState as error:
            log.info("moved_by_another", job_id=job.id, detail=str(error))
        except (ClusterUnreachable, MlflowUnreachable, StorageUnreachable) as error:
            self._tell_down(type(error).__name__.removesuffix("Unreachable"), str(error))
        except Exception:  # logged with its job; the next round tries again
            log.exception("job_failed_to_advance", job_id=job.id)

    # --- looking ----------------------------------------------------------------------------------------------------

    def _check_mlflow(self) -> None:
        try:
            self._mlflow.ping()
        except MlflowUnreachable as error:
            self._mlflow_since = None
            self._tell_down("Mlflow", str(error))
        else:
            self._mlflow_since = self._mlflow_since or time.monotonic()
            self._tell_up("Mlflow")

    def _tell_down(self, part: str, error: str) -> None:
        if part not in self._down:
            log.warning("unreachable", part=part, error=error)
        self._down[part] = error

    def _tell_up(self, part: str) -> None:
        if self._down.pop(part, None):
            log.info("reachable_again", part=part)

    def _look(self, job: Job, attempt: Attempt) -> Seen:
        ray = self._ray.state(attempt.submission_id)
        run = None
        if self._mlflow_since is not None and job.run_id:
            try:
                run = self._mlflow.run(job.run_id)
            except MlflowUnreachable as error:
                self._tell_down("Mlflow", str(error))
        up = timedelta(seconds=time.monotonic() - self._mlflow_since) if self._mlflow_since else timedelta(0)
        outcome = None
        if (ray.ended or ray is RayState.ABSENT) and job.artifact_uri:
            data = self._artifacts.read(job.artifact_uri, names.outcome_file(attempt.number))
            self._tell_up("Storage")
            place = f"{job.artifact_uri}/{names.outcome_file(attempt.number)}"
            outcome = None if data is None else _outcome(data, place)
        return Seen(now=now(), ray=ray, outcome=outcome, run=run, mlflow_up=up)

    # --- one job ----------------------------------------------------------------------------------------------------

    def _advance(self, job: Job, attempt: Attempt | None) -> None:
        if attempt is None or attempt.ended_at is not None:
            self._without_attempt(job)
            return
        seen = self._look(job, attempt)
        decision = decide(job, attempt, seen, self._patience)
        if isinstance(decision, Ended):
            if not attempt.accepted and job.run_id:
                self._mlflow.command(job.run_id, _command(job, attempt))  # should Ray take it late after all
            self._end(job, attempt, decision, seen)
            return
        self._act(job, attempt, decision)
        with self._database.session() as session:
            self._apply(session, job, attempt, decision, seen)

    def _without_attempt(self, job: Job) -> None:
        """A job between two attempts that is to end has ended."""
        ends = {
            State.CANCELLING: (State.CANCELLED, Reason.CANCELLED_BY_USER, "Cancelled."),
            State.PAUSING: (
                State.PAUSED,
                Reason.PAUSED_BY_USER,
                "Paused. Resume it to go on from the last checkpoint.",
            ),
        }
        end = ends.get(State(job.state))
        if end:
            self._end_run(job, end[0])
            with self._database.session() as session:
                transition(session, repository.get(session, job.id), *end, ACTOR)

    def _act(self, job: Job, attempt: Attempt, decision: Decision) -> None:
        if decision == "submit":
            self._ray.submit(attempt.submission_id, _request(job, attempt.number, self._mlflow.url))
        elif decision in {"command", "stop"} and job.run_id:
            # Also before a stop: told to stop a job it is just starting, Ray says STOPPED and lets it run (2.60).
            self._mlflow.command(job.run_id, _command(job, attempt))
            if decision == "stop":
                self._ray.stop(attempt.submission_id)

    def _apply(self, session: Session, loaded: Job, before: Attempt, decision: Decision, seen: Seen) -> None:
        job = repository.get(session, loaded.id)
        attempt = repository.last_attempt(session, job)
        if attempt is None or attempt.number != before.number:
            return
        if decision in {"accept", "submit"}:
            attempt.accepted = decision == "accept" or attempt.accepted
        elif decision in {"command", "stop"}:
            command = _command(loaded, before)
            attempt.command, attempt.generation, attempt.commanded_at = command.action, command.generation, seen.now
            if decision == "stop":
                attempt.stop_asked_at = seen.now
                log.info("stop_asked", job_id=job.id, attempt=attempt.number)
        elif decision == "started" and job.state == State.STARTING:
            attempt.state = "running"
            transition(session, job, State.RUNNING, None, f"Attempt {attempt.number} is training.", ACTOR)
        if seen.run:
            _record(job, seen.run)

    def _end(self, loaded: Job, before: Attempt, ended: Ended, seen: Seen) -> None:
        if seen.outcome is None and seen.ray.ended and ended.state in {"failed", "lost"}:
            # Ray's own log is the only word of an attempt that could not store its outcome.
            tail = self._ray.log_tail(before.submission_id)
            ended = Ended(ended.state, ended.reason, f"{ended.message} Its log ends: {tail}", ended.checkpoint)
        step = settle(loaded, ended, parse_spec(loaded.run_spec).retry.max_failures)
        result = self._result(loaded, seen.run) if step.state is State.SUCCEEDED else None
        self._end_run(loaded, step.state)
        with self._database.session() as session:
            job = repository.get(session, loaded.id)
            attempt = repository.last_attempt(session, job)
            if job.state != loaded.state or attempt is None or attempt.number != before.number:
                raise StaleState(f"job {job.id} is {job.state} now")
            attempt.state, attempt.reason, attempt.message = ended.state, ended.reason, ended.message
            attempt.checkpoint, attempt.ended_at = ended.checkpoint, seen.now
            job.failures += step.charged
            job.restarts = job.restarts + 1 if step.state is State.RECOVERING else 0
            job.not_before = seen.now + step.delay if step.state is State.RECOVERING else None
            if seen.run:
                _record(job, seen.run)
            if result:
                job.result = result.model_dump(mode="json")
            transition(session, job, step.state, step.reason, step.message, ACTOR)
        log.info("attempt_ended", job_id=loaded.id, attempt=before.number, state=step.state, reason=step.reason)

    def _end_run(self, job: Job, state: State) -> None:
        if job.run_id and state in RUN_STATUS:
            self._mlflow.end_run(job.run_id, RUN_STATUS[state])

    def _result(self, job: Job, run: RunView | None) -> Result:
        spec = parse_spec(job.run_spec)
        version = self._mlflow.version_of_job(spec.register_as, job.id) if spec.register_as else None
        metrics = {key: value for key, value in (run.metrics if run else {}).items() if key.startswith(RESULT_METRICS)}
        backbone = BackboneRef(name=version.name, version=version.version) if version else None
        return Result(metrics=metrics, backbone=backbone)

    # --- starting attempts ------------------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        with self._database.read() as session:
            waiting = repository.waiting(session)
            running = [
                Running(job.id, job.owner, gang(parse_spec(job.run_spec)))
                for job, attempt in repository.active(session)
                if _is_live(attempt)
            ]
        if not waiting:
            return
        try:
            shape = self._ray.shape()
        except ClusterUnreachable as error:
            self._tell_down("Cluster", str(error))
            return
        self._tell_up("Cluster")
        limits = Limits(running_per_user=None, passing_s=1800.0)
        for admission in admit([_waiting(job, shape) for job in waiting], running, shape, now(), limits):
            job = next(job for job in waiting if job.id == admission.job_id)
            self._guarded(job, partial(self._start, job, admission, shape))

    def _start(self, loaded: Job, admission: Admission, shape: ClusterShape) -> None:
        if not admission.start:
            with self._database.session() as session:
                job = repository.get(session, loaded.id)
                if job.state == State.QUEUED:
                    note(session, job, Reason.INSUFFICIENT_RESOURCES, admission.message, ACTOR)
                elif job.state == State.RECOVERING:  # why it recovers stays
                    note(session, job, Reason(job.reason) if job.reason else None, admission.message, ACTOR)
            return
        spec = resolve(parse_spec(loaded.run_spec), shape)
        tags = {
            names.TAG_METHOD: spec.method.name,
            names.TAG_EPOCHS: str(spec.optimization.epochs),
            names.TAG_SPEC: spec.sha256(),
        }
        run_id, artifact_uri = self._mlflow.make_run(loaded.id, loaded.name, tags)
        if loaded.attempts:
            self._mlflow.end_run(run_id, "RUNNING")
        self._mlflow.fence(run_id, loaded.attempts + 1)
        with self._database.session() as session:
            job = repository.get(session, loaded.id)
            if job.state not in {State.QUEUED, State.RECOVERING} or job.attempts != loaded.attempts:
                raise StaleState(f"job {job.id} is {job.state} now")
            job.resolved_spec = spec.model_dump(mode="json")
            job.run_id, job.artifact_uri = run_id, artifact_uri
            job.attempts += 1
            number = job.attempts
            identity = names.submission_id(job.id, number)
            session.add(Attempt(job_id=job.id, number=number, submission_id=identity, state="submitted"))
            transition(session, job, State.STARTING, None, f"Attempt {number} starts. {admission.message}", ACTOR)
            request = _request(job, number, self._mlflow.url)
        self._ray.submit(identity, request)
        log.info("attempt_submitted", job_id=loaded.id, attempt=number)


def _outcome(data: bytes, place: str) -> Outcome:
    """An attempt's last word; one that cannot be read is a failure of the storage, which ends the attempt too."""
    try:
        return Outcome.model_validate_json(data)
    except ValidationError as error:
        text = f"{place} holds {len(data)} bytes that are no outcome: {error.errors()[0]['msg']}."
        return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)


def _is_live(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.ended_at is None


def _waiting(job: Job, shape: ClusterShape) -> Waiting:
    return Waiting(
        job.id,
        job.owner,
        resolve(parse_spec(job.run_spec), shape),
        job.priority,
        job.waiting_since,
        job.not_before,
        recovering=job.state == State.RECOVERING,
    )


def _request(job: Job, attempt: int, tracking_uri: str) -> AttemptRequest:
    if not job.run_id or not job.artifact_uri:
        raise ValueError(f"job {job.id} has no run yet")
    return AttemptRequest(
        job_id=job.id,
        attempt=attempt,
        run_id=job.run_id,
        tracking_uri=tracking_uri,
        artifact_uri=job.artifact_uri,
        since_attempt=job.since_attempt,
        spec=parse_spec(job.run_spec),
    )


def _command(job: Job, attempt: Attempt) -> Command:
    action = "pause" if job.state == State.PAUSING else "cancel"
    return Command.model_validate({"attempt": attempt.number, "generation": attempt.generation + 1, "action": action})


def _record(job: Job, run: RunView) -> None:
    """What a run's metrics and tags tell about its job."""
    images = run.tags.get(names.TAG_IMAGES)
    job.dataset_images = int(images) if images else job.dataset_images
    progress = progress_of(job.run_spec, run.metrics, run.tags.get(names.TAG_STEPS))
    if progress:
        job.progress = progress.model_dump(mode="json")


def progress_of(spec: Mapping[str, object], metrics: Mapping[str, float], steps: str | None) -> Progress | None:
    """How far a run is; None before its first metrics."""
    samples = metrics.get(names.SAMPLES)
    if samples is None:
        return None
    optimization = parse_spec(spec).optimization
    step = round(samples / optimization.global_batch_size)
    total, rate = int(steps) if steps else None, metrics.get(names.IMAGES_PER_S)
    left = (total - step) * optimization.global_batch_size / rate if total is not None and rate else None
    return Progress(
        epoch=metrics.get(names.EPOCH, 0.0),
        epochs=optimization.epochs,
        step=step,
        steps=total,
        samples=int(samples),
        images_per_s=rate,
        loss=metrics.get(names.LOSS),
        eta_s=left,
    )

"""The control loop: load jobs, observe, decide, act, apply. No database transaction is open during I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.adapters.ray_cluster import ClusterUnreachable, RayState
from service.adapters.storage import OutsideRoot
from service.controller.context import ACTOR, ControllerContext, StaleState, isolated_job
from service.controller.decide import STEADY, Decision, Ended, Hung, Observation, Patience, decide, settle
from service.controller.dependencies import Unavailable
from service.controller.kind import ProgressReport
from service.controller.removal import Removals
from service.controller.starting import attempt_request, start_waiting
from service.controller.sweeps import Sweeps
from service.controller.versions import VersionChecks
from service.controller.worker import Worker
from service.counters import ATTEMPTS, GPU_SECONDS, NONE, ROUND_SECONDS
from service.db.tables import Attempt, Job, now
from service.jobs import lineage, repository
from service.jobs.lifecycle import CANCELLED, PAUSED, RUN_STATUS, note, transition
from service.jobs.state import State
from trainer.protocol import names
from trainer.protocol.command import Command
from trainer.protocol.outcome import Outcome, Reason
from trainer.spec.job import parse_spec

log = structlog.get_logger()

SLOW_START = timedelta(seconds=90)
"""Time after which a starting attempt is reported as slow."""
STOP_S = 8.0
"""Longest wait for the work under way when the controller is stopped."""
RUN_GONE = "Its MLflow run was removed, with everything recorded in it."


class Reconciler:
    """The control loop over all jobs, on a thread of its own; removals, sweeps and version checks have three more."""

    def __init__(self, context: ControllerContext) -> None:
        self._context, self._dependencies, settings = context, context.dependencies, context.app.settings
        self._patience = Patience(
            command=timedelta(seconds=settings.command_deadline_s),
            heartbeat=timedelta(seconds=settings.heartbeat_limit_s),
            start=timedelta(seconds=settings.start_limit_s),
            stall=timedelta(seconds=settings.stall_limit_s),
        )
        self.removals, self.sweeps, self.versions = Removals(context), Sweeps(context), VersionChecks(context)
        self._deleted = threading.Event()
        """Set after every round: people may have deleted something."""
        self._loop = self._worker("reconciler", self._timed_round, settings.poll_interval_s, context.app.wake)
        self._workers = (
            self._loop,
            self._worker("removals", self.removals.run, settings.poll_interval_s, self._deleted),
            self._worker("sweeps", self.sweeps.run, settings.sweep_interval_s, threading.Event()),
            self._worker("versions", self.versions.run, settings.poll_interval_s, threading.Event()),
        )

    def _worker(self, name: str, work: Callable[[], None], pause_s: float, wake: threading.Event) -> Worker:
        return Worker(name, self._context.lease, work, pause_s, wake)

    @property
    def context(self) -> ControllerContext:
        """Its adapters and lease."""
        return self._context

    def start(self) -> None:
        for worker in self._workers:
            worker.start()
        self._context.lease.start(lambda: self.stuck() is None)

    def stop(self) -> None:
        """End after the present round, and give up the lease so that another process can take over at once."""
        until = time.monotonic() + STOP_S
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        self._context.lease.release()

    def lag(self) -> float:
        """Seconds since the last round."""
        return time.monotonic() - self._loop.finished_at

    def stuck(self) -> float | None:
        """Seconds since the last round, where that is too long; None otherwise."""
        age = self.lag()
        return age if age > self._context.app.settings.stuck_after_s or not self._loop.alive else None

    def _timed_round(self) -> None:
        with ROUND_SECONDS.time():
            self.round()
        self._context.lease.finished_round()
        self._deleted.set()

    def round(self) -> None:
        """Advance every job once. A job whose attempt ends in this round waits for a later one, whatever its delay."""
        began = now()
        with self._context.app.database.read() as session:
            jobs = repository.active(session)
        for job, attempt in jobs:
            with isolated_job(job):
                self._advance(job, attempt)
        start_waiting(self._context, began)
        for kind in self._context.kinds.values():
            kind.settle_ended(self._context)

    # --- observing ----------------------------------------------------------------------------------------------------

    def _observe(self, job: Job, attempt: Attempt) -> Observation:
        ray, run, moment = self._ray_state(attempt), self._run_of(job), now()
        beat = run.heartbeat(attempt.number) if run else None
        if run and run.gone:
            beat = attempt.heartbeat  # no newer one will arrive
        is_new = beat != attempt.heartbeat or attempt.heartbeat_at is None
        beat_at = moment if beat is not None and is_new else attempt.heartbeat_at
        silent = min(moment - (beat_at or moment), self._dependencies.mlflow.available_for())
        outcome = None
        if (ray.ended or ray is RayState.ABSENT) and job.artifact_uri:
            outcome = self._outcome(job.artifact_uri, attempt.number)
        return Observation(now=moment, ray=ray, outcome=outcome, run=run, beat=beat, beat_at=beat_at, silent=silent)

    def _ray_state(self, attempt: Attempt) -> RayState:
        state = RayState.UNKNOWN
        try:
            with self._dependencies.ray.call():
                state = self._context.app.ray.state(attempt.submission_id)
                if state is RayState.UNKNOWN:
                    raise ClusterUnreachable("it does not report the state of its jobs")
        except Unavailable:
            pass  # UNKNOWN is the answer then
        return state

    def _run_of(self, job: Job) -> RunView | None:
        if not job.run_id:
            return None
        try:
            with self._dependencies.mlflow.call():
                return self._context.app.mlflow.run(job.run_id)
        except Unavailable:
            return None  # callers treat None as unknown

    def _outcome(self, artifact_uri: str, attempt: int) -> Outcome | None:
        """The outcome that an attempt left, if any; an unreadable one counts as a failure of the storage."""
        name = names.outcome_file(attempt)
        try:
            with self._dependencies.storage.call():
                data = self._context.app.artifacts.read(artifact_uri, name)
        except OutsideRoot as error:  # of a state folder that was copied or moved
            text = f"{error}, {self._context.app.artifacts.root}, so {name} cannot be read."
            return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)
        if data is None:
            return None
        try:
            return Outcome.model_validate_json(data)
        except ValidationError as error:
            text = f"{artifact_uri}/{name} holds {len(data)} bytes that are not an outcome: {error.errors()[0]['msg']}."
            return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)

    # --- one job ----------------------------------------------------------------------------------------------------

    def _advance(self, job: Job, attempt: Attempt | None) -> None:
        if attempt is None or attempt.ended_at is not None:
            self._without_attempt(job)
            return
        try:
            observation = self._observe(job, attempt)
        except Unavailable as error:  # the attempt is over, and its outcome cannot be read yet
            if attempt.accepted:
                self._context.set_message(
                    job, f"Attempt {attempt.number} has ended; its outcome is not known yet: {error}."
                )
            raise
        decision = decide(job, attempt, observation, self._patience)
        if isinstance(decision, Ended):
            if not attempt.accepted:
                self._command(job, attempt)  # in case Ray starts it late
            self._end(job, attempt, decision, observation)
            return
        commanded = self._act(job, attempt, decision)
        kind = self._context.kinds[job.kind]
        kind.update_orders(self._context, job, observation.run)
        report = kind.report(self._context, job, observation.run)
        with self._context.write() as session:
            self._apply(session, job, attempt, decision, observation, commanded, report)

    def _without_attempt(self, job: Job) -> None:
        """End a job that is to be cancelled or paused and has no live attempt."""
        ends = {
            State.CANCELLING: (State.CANCELLED, Reason.CANCELLED_BY_USER, CANCELLED),
            State.PAUSING: (State.PAUSED, Reason.PAUSED_BY_USER, PAUSED),
        }
        end = ends.get(State(job.state))
        if end:
            with self._context.explain_waiting(job, "No attempt runs;"):
                report = self._context.kinds[job.kind].settle(self._context, job, None, end[0])
            self._end_run(job, end[0])
            state, reason, message = end
            message = message.format(continuation=self._continuation(job))
            with self._context.write() as session:
                row = repository.get(session, job.id)
                report.record(row, repository.attempts(session, job.id), now())
                transition(session, row, state, reason, message, ACTOR)
                report.settled(session, self._context, row)

    def _continuation(self, job: Job, newest: str | None = None) -> str:
        """What a job does once it is queued again; ``newest`` is a checkpoint that its row does not have yet."""
        with self._context.app.database.read() as session:
            has_checkpoint = newest is not None or repository.has_checkpoint(session, job)
        return self._context.kinds[job.kind].continuation(has_checkpoint)

    def _act(self, job: Job, attempt: Attempt, decision: Decision) -> bool:
        """Carry out a decision; returns whether a command was sent to the attempt."""
        commanded = False
        if decision == "submit":
            with self._context.app.database.read() as session:
                source = self._context.kinds[job.kind].source(session, parse_spec(job.run_spec))
            request = attempt_request(self._context.app, job, attempt.number, source)
            with self._dependencies.ray.call():
                self._context.app.ray.submit(attempt.submission_id, request)
        elif decision == "command" or _stops(decision):
            # Also before a stop: Ray 2.60 reports a job that it is just starting as STOPPED, and lets it run.
            commanded = self._command(job, attempt)
            if _stops(decision):
                with self._dependencies.ray.call():
                    self._context.app.ray.stop(attempt.submission_id)
        return commanded

    def _command(self, job: Job, attempt: Attempt) -> bool:
        """Command an attempt to end; returns False where MLflow is unavailable."""
        if not job.run_id:
            return False
        try:
            with self._dependencies.mlflow.call():
                self._context.app.mlflow.command(job.run_id, _command(job, attempt))
        except Unavailable as error:
            log.debug("not_told", job_id=job.id, attempt=attempt.number, detail=str(error))
            return False
        return True

    def _apply(
        self,
        session: Session,
        loaded: Job,
        before: Attempt,
        decision: Decision,
        observation: Observation,
        commanded: bool,
        report: ProgressReport | None,
    ) -> None:
        job = repository.get(session, loaded.id)
        attempt = repository.last_attempt(session, job)
        if attempt is None or attempt.number != before.number:
            return
        if decision in {"accept", "submit"}:
            attempt.accepted = decision == "accept" or attempt.accepted
        elif decision == "command" or _stops(decision):
            if commanded:
                command = _command(loaded, before)
                attempt.command, attempt.generation, attempt.commanded_at = (
                    command.action,
                    command.generation,
                    observation.now,
                )
            else:
                attempt.command, attempt.commanded_at = None, attempt.commanded_at or observation.now
            if _stops(decision):
                attempt.stop_asked_at = observation.now
                log.info("stop_asked", job_id=job.id, attempt=attempt.number)
            if isinstance(decision, Hung):
                attempt.reason, attempt.message = decision.reason, decision.message
        elif decision == "started" and job.state == State.STARTING:
            attempt.state = "running"
            transition(session, job, State.RUNNING, None, self._running_message(job, attempt), ACTOR)
        _record(session, job, attempt, observation, report)
        self._update_message(session, job, attempt, observation)

    def _update_message(self, session: Session, job: Job, attempt: Attempt, observation: Observation) -> None:
        """Report problems of a job that continues, and clear the report once they are over."""
        over = observation.ray.ended or observation.ray is RayState.ABSENT
        if attempt.accepted and over and observation.run is None:
            text = f"Attempt {attempt.number} has ended; its metrics are not known yet: MLflow does not answer."
            note(session, job, job.reason, text, ACTOR)
        elif job.state == State.STARTING and attempt.accepted and observation.now - attempt.started_at > SLOW_START:
            text = (
                f"Attempt {attempt.number} is slow to start: Ray has not placed its workers yet, or they still import."
            )
            note(session, job, None, text, ACTOR)
        elif job.state == State.RUNNING and observation.run:
            trouble = RUN_GONE if observation.run.gone else observation.run.tags.get(names.TAG_NOTICE)
            note(
                session,
                job,
                Reason.STORAGE_ERROR if trouble else None,
                trouble or self._running_message(job, attempt),
                ACTOR,
            )

    def _running_message(self, job: Job, attempt: Attempt) -> str:
        return self._context.kinds[job.kind].running_message(job, attempt)

    def _end(self, loaded: Job, before: Attempt, ended: Ended, observation: Observation) -> None:
        if observation.outcome is None and observation.ray.ended and ended.state in {"failed", "lost"}:
            # Ray's log is all there is of an attempt that could not store its outcome.
            with self._dependencies.ray.call():
                tail = self._context.app.ray.log_tail(before.submission_id)
            ended = replace(ended, message=f"{ended.message} Its log ends with: {tail}")
        kind = self._context.kinds[loaded.kind]
        continuation = self._continuation(loaded, ended.checkpoint or _newest_checkpoint(before, observation))
        following = settle(loaded, ended, parse_spec(loaded.run_spec).retry.max_failures, continuation)
        with self._context.explain_waiting(loaded, f"Attempt {before.number} has ended;"):
            report = kind.settle(self._context, loaded, observation.run, following.state)
        succeeded = following.state is State.SUCCEEDED
        if succeeded:
            following = replace(following, message=report.summary())
        if observation.run and observation.run.gone:
            following = replace(following, message=f"{following.message} {RUN_GONE}")
        result = report.result() if succeeded else None
        self._end_run(loaded, following.state)
        with self._context.write() as session:
            job = repository.get(session, loaded.id)
            attempt = repository.last_attempt(session, job)
            if job.state != loaded.state or attempt is None or attempt.number != before.number:
                raise StaleState(f"job {job.id} is {job.state} now")
            attempt.state, attempt.reason, attempt.message = ended.state, ended.reason, ended.message
            attempt.ended_at = observation.now
            again = following.state is State.RECOVERING
            steady = observation.now - attempt.started_at > STEADY
            job.failures += following.charged
            job.restarts = (1 if steady else job.restarts + 1) if again else 0
            job.not_before = observation.now + following.delay if again else None
            _record(session, job, attempt, observation, report)
            attempt.checkpoint = ended.checkpoint or attempt.checkpoint
            if result:
                job.result = result.model_copy(update={"backbones": lineage.versions(job)}).model_dump(mode="json")
                lineage.add(session, self._context.kinds, job, result.backbones)
            transition(session, job, following.state, following.reason, following.message, ACTOR)
            report.settled(session, self._context, job)
        ATTEMPTS.labels(ended.state, ended.reason or NONE).inc()
        GPU_SECONDS.inc((attempt.gpus or 0) * (observation.now - attempt.started_at).total_seconds())
        log.info(
            "attempt_ended", job_id=loaded.id, attempt=before.number, state=following.state, reason=following.reason
        )

    def _end_run(self, job: Job, state: State) -> None:
        if job.run_id and state in RUN_STATUS:
            with self._dependencies.mlflow.call():
                self._context.app.mlflow.end_run(job.run_id, RUN_STATUS[state])


def _stops(decision: Decision) -> bool:
    return decision == "stop" or isinstance(decision, Hung)


def _command(job: Job, attempt: Attempt) -> Command:
    action = "pause" if job.state == State.PAUSING else "cancel"
    return Command.model_validate({"attempt": attempt.number, "generation": attempt.generation + 1, "action": action})


def _record(
    session: Session, job: Job, attempt: Attempt, observation: Observation, report: ProgressReport | None
) -> None:
    """Write what was observed of an attempt and its job into the database."""
    if report:
        report.record(job, repository.attempts(session, job.id), observation.now)
    if observation.run is None or observation.run.gone:
        return
    attempt.heartbeat, attempt.heartbeat_at = observation.beat, observation.beat_at
    attempt.checkpoint = _newest_checkpoint(attempt, observation) or attempt.checkpoint


def _newest_checkpoint(attempt: Attempt, observation: Observation) -> str | None:
    """The newest checkpoint of this attempt that its run names."""
    newest = observation.run.tags.get(names.TAG_CHECKPOINT, "") if observation.run else ""
    return newest if newest.startswith(f"{names.checkpoint_folder(attempt.number)}/") else None

"""The loop that makes jobs happen: load, look, decide, act, apply. No database transaction is open during I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog
from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import RunView
from service.adapters.ray_cluster import ClusterUnreachable, RayState
from service.adapters.storage import OutsideRoot
from service.controller.context import ACTOR, ControllerContext, StaleState, guarded
from service.controller.decide import STEADY, Decision, Ended, Patience, Seen, decide, settle
from service.controller.dependencies import Away
from service.controller.kind import Standing
from service.controller.removal import Removals
from service.controller.starting import attempt_request, start_waiting
from service.controller.sweeps import Sweeps
from service.controller.worker import Worker
from service.counters import ATTEMPTS, GPU_SECONDS, NONE, ROUND_SECONDS
from service.db.tables import Attempt, Job, now
from service.jobs import lineage, repository
from service.jobs.lifecycle import RUN_STATUS, note, transition
from service.jobs.schemas import State
from trainer.protocol import names
from trainer.protocol.command import Command
from trainer.protocol.outcome import Outcome, Reason
from trainer.spec.job import parse_spec

log = structlog.get_logger()

SLOW_START = timedelta(seconds=90)
STOP_S = 8.0
RUN_GONE = "Its MLflow run was removed, with all that was recorded in it."


class Reconciler:
    """One loop over all jobs, on a thread of its own; removals and sweeps on two more."""

    def __init__(self, context: ControllerContext) -> None:
        self._context, self._needs, settings = context, context.needs, context.app.settings
        self._patience = Patience(
            command=timedelta(seconds=settings.command_deadline_s),
            heartbeat=timedelta(seconds=settings.heartbeat_limit_s),
            start=timedelta(seconds=settings.start_limit_s),
        )
        self.removals, self.sweeps = Removals(context), Sweeps(context)
        self._deleted = threading.Event()
        """Set after every round: people may have deleted something."""
        self._loop = self._worker("reconciler", self._timed_round, settings.poll_interval_s, context.app.wake)
        self._workers = (
            self._loop,
            self._worker("removals", self.removals.run, settings.poll_interval_s, self._deleted),
            self._worker("sweeps", self.sweeps.run, settings.sweep_interval_s, threading.Event()),
        )

    def _worker(self, name: str, work: Callable[[], None], pause_s: float, wake: threading.Event) -> Worker:
        return Worker(name, self._context.lease, work, pause_s, wake)

    @property
    def context(self) -> ControllerContext:
        """What it acts with."""
        return self._context

    def start(self) -> None:
        for worker in self._workers:
            worker.start()
        self._context.lease.start(lambda: self.stuck() is None)

    def stop(self) -> None:
        """End after the present round, and let another process take over at once."""
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
        """Seconds since the last round, where that is too long."""
        age = self.lag()
        return age if age > self._context.app.settings.stuck_after_s or not self._loop.alive else None

    def _timed_round(self) -> None:
        with ROUND_SECONDS.time():
            self.round()
        self._context.lease.finished_round()
        self._deleted.set()

    def round(self) -> None:
        """Look at every job once. A job whose attempt ends in this round waits for a later one, whatever its pause."""
        began = now()
        with self._context.app.database.read() as session:
            jobs = repository.active(session)
        for job, attempt in jobs:
            with guarded(job):
                self._advance(job, attempt)
        start_waiting(self._context, began)
        for kind in self._context.kinds.values():
            kind.finish(self._context)

    # --- looking ----------------------------------------------------------------------------------------------------

    def _look(self, job: Job, attempt: Attempt) -> Seen:
        ray, run, moment = self._ray_state(attempt), self._run_of(job), now()
        beat = run.heartbeat(attempt.number) if run else None
        if run and run.gone:
            beat = attempt.heartbeat  # the last there will be
        fresh = beat != attempt.heartbeat or attempt.heartbeat_at is None
        beat_at = moment if beat is not None and fresh else attempt.heartbeat_at
        silent = min(moment - (beat_at or moment), self._needs.mlflow.answering())
        outcome = None
        if (ray.ended or ray is RayState.ABSENT) and job.artifact_uri:
            outcome = self._outcome(job.artifact_uri, attempt.number)
        return Seen(now=moment, ray=ray, outcome=outcome, run=run, beat=beat, beat_at=beat_at, silent=silent)

    def _ray_state(self, attempt: Attempt) -> RayState:
        state = RayState.UNKNOWN
        try:
            with self._needs.ray.asked():
                state = self._context.app.ray.state(attempt.submission_id)
                if state is RayState.UNKNOWN:
                    raise ClusterUnreachable("it does not say what has become of its jobs")
        except Away:
            pass  # out of reach is an answer: nothing is known
        return state

    def _run_of(self, job: Job) -> RunView | None:
        if not job.run_id:
            return None
        try:
            with self._needs.mlflow.asked():
                return self._context.app.mlflow.run(job.run_id)
        except Away:
            return None  # so is this

    def _outcome(self, artifact_uri: str, attempt: int) -> Outcome | None:
        """An attempt's last word; one that cannot be read is a failure of the storage, which ends the attempt too."""
        name = names.outcome_file(attempt)
        try:
            with self._needs.storage.asked():
                data = self._context.app.artifacts.read(artifact_uri, name)
        except OutsideRoot as error:
            text = f"{error}, {self._context.app.artifacts.root}, so {name} cannot be read."
            return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)
        if data is None:
            return None
        try:
            return Outcome.model_validate_json(data)
        except ValidationError as error:
            text = f"{artifact_uri}/{name} holds {len(data)} bytes that are no outcome: {error.errors()[0]['msg']}."
            return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)

    # --- one job ----------------------------------------------------------------------------------------------------

    def _advance(self, job: Job, attempt: Attempt | None) -> None:
        if attempt is None or attempt.ended_at is not None:
            self._without_attempt(job)
            return
        try:
            seen = self._look(job, attempt)
        except Away as error:  # it is over, and its last word cannot be read yet
            if attempt.accepted:
                self._context.say(job, f"Attempt {attempt.number} has ended; how, is not known yet: {error}.")
            raise
        decision = decide(job, attempt, seen, self._patience)
        if isinstance(decision, Ended):
            if not attempt.accepted:
                self._command(job, attempt)  # should Ray take it late after all
            self._end(job, attempt, decision, seen)
            return
        told = self._act(job, attempt, decision)
        kind = self._context.kinds[job.kind]
        kind.direct(self._context, job, seen.run)
        standing = kind.observe(self._context, job, seen.run)
        with self._context.write() as session:
            self._apply(session, job, attempt, decision, seen, told, standing)

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
            with self._context.explained(job, "No attempt runs;"):
                standing = self._context.kinds[job.kind].settle(self._context, job, None, end[0])
            self._end_run(job, end[0])
            with self._context.write() as session:
                found = repository.get(session, job.id)
                standing.record(found, repository.attempts(session, job.id), now())
                transition(session, found, *end, ACTOR)

    def _act(self, job: Job, attempt: Attempt, decision: Decision) -> bool:
        """Do what was decided; gives whether the attempt was told of it."""
        told = False
        if decision == "submit":
            with self._context.app.database.read() as session:
                source = self._context.kinds[job.kind].source(session, parse_spec(job.run_spec))
            roots = self._context.app.settings.dataset_roots
            request = attempt_request(job, attempt.number, self._context.app.mlflow.url, roots, source)
            with self._needs.ray.asked():
                self._context.app.ray.submit(attempt.submission_id, request)
        elif decision in {"command", "stop"}:
            # Also before a stop: told to stop a job it is just starting, Ray says STOPPED and lets it run (2.60).
            told = self._command(job, attempt)
            if decision == "stop":
                with self._needs.ray.asked():
                    self._context.app.ray.stop(attempt.submission_id)
        return told

    def _command(self, job: Job, attempt: Attempt) -> bool:
        """Tell an attempt to end; false where MLflow does not take it."""
        if not job.run_id:
            return False
        try:
            with self._needs.mlflow.asked():
                self._context.app.mlflow.command(job.run_id, _command(job, attempt))
        except Away as error:
            log.debug("not_told", job_id=job.id, attempt=attempt.number, detail=str(error))
            return False
        return True

    def _apply(
        self,
        session: Session,
        loaded: Job,
        before: Attempt,
        decision: Decision,
        seen: Seen,
        told: bool,
        standing: Standing | None,
    ) -> None:
        job = repository.get(session, loaded.id)
        attempt = repository.last_attempt(session, job)
        if attempt is None or attempt.number != before.number:
            return
        if decision in {"accept", "submit"}:
            attempt.accepted = decision == "accept" or attempt.accepted
        elif decision in {"command", "stop"}:
            if told:
                command = _command(loaded, before)
                attempt.command, attempt.generation, attempt.commanded_at = command.action, command.generation, seen.now
            else:
                attempt.command, attempt.commanded_at = None, attempt.commanded_at or seen.now
            if decision == "stop":
                attempt.stop_asked_at = seen.now
                log.info("stop_asked", job_id=job.id, attempt=attempt.number)
        elif decision == "started" and job.state == State.STARTING:
            attempt.state = "running"
            transition(session, job, State.RUNNING, None, self._working(job, attempt), ACTOR)
        _take_over(session, job, attempt, seen, standing)
        self._say(session, job, attempt, seen)

    def _say(self, session: Session, job: Job, attempt: Attempt, seen: Seen) -> None:
        """What troubles a job that goes on, and when it no longer does."""
        over = seen.ray.ended or seen.ray is RayState.ABSENT
        if attempt.accepted and over and seen.run is None:
            text = f"Attempt {attempt.number} has ended; MLflow, which has its metrics, does not answer."
            note(session, job, job.reason, text, ACTOR)
        elif job.state == State.STARTING and attempt.accepted and seen.now - attempt.started_at > SLOW_START:
            text = (
                f"Attempt {attempt.number} is slow to start: Ray has not placed its workers yet, or they still import."
            )
            note(session, job, None, text, ACTOR)
        elif job.state == State.RUNNING and seen.run:
            trouble = RUN_GONE if seen.run.gone else seen.run.tags.get(names.TAG_NOTICE)
            note(session, job, Reason.STORAGE_ERROR if trouble else None, trouble or self._working(job, attempt), ACTOR)

    def _working(self, job: Job, attempt: Attempt) -> str:
        return self._context.kinds[job.kind].working(job, attempt)

    def _end(self, loaded: Job, before: Attempt, ended: Ended, seen: Seen) -> None:
        if seen.outcome is None and seen.ray.ended and ended.state in {"failed", "lost"}:
            # Ray's own log is the only word of an attempt that could not store its outcome.
            with self._needs.ray.asked():
                tail = self._context.app.ray.log_tail(before.submission_id)
            ended = replace(ended, message=f"{ended.message} Its log ends: {tail}")
        kind = self._context.kinds[loaded.kind]
        step = settle(loaded, ended, parse_spec(loaded.run_spec).retry.max_failures, kind.goes_on)
        with self._context.explained(loaded, f"Attempt {before.number} has ended;"):
            standing = kind.settle(self._context, loaded, seen.run, step.state)
        succeeded = step.state is State.SUCCEEDED
        if succeeded:
            step = replace(step, message=standing.summary())
        if seen.run and seen.run.gone:
            step = replace(step, message=f"{step.message} {RUN_GONE}")
        result = standing.result() if succeeded else None
        self._end_run(loaded, step.state)
        with self._context.write() as session:
            job = repository.get(session, loaded.id)
            attempt = repository.last_attempt(session, job)
            if job.state != loaded.state or attempt is None or attempt.number != before.number:
                raise StaleState(f"job {job.id} is {job.state} now")
            attempt.state, attempt.reason, attempt.message = ended.state, ended.reason, ended.message
            attempt.ended_at = seen.now
            again = step.state is State.RECOVERING
            steady = seen.now - attempt.started_at > STEADY
            job.failures += step.charged
            job.restarts = (1 if steady else job.restarts + 1) if again else 0
            job.not_before = seen.now + step.delay if again else None
            _take_over(session, job, attempt, seen, standing)
            attempt.checkpoint = ended.checkpoint or attempt.checkpoint
            if result:
                job.result = result.model_copy(update={"backbones": lineage.of(job)}).model_dump(mode="json")
                lineage.add(session, job, result.backbones)
            transition(session, job, step.state, step.reason, step.message, ACTOR)
            if succeeded:
                standing.succeeded(session, self._context, job)
        ATTEMPTS.labels(ended.state, ended.reason or NONE).inc()
        GPU_SECONDS.inc((attempt.gpus or 0) * (seen.now - attempt.started_at).total_seconds())
        log.info("attempt_ended", job_id=loaded.id, attempt=before.number, state=step.state, reason=step.reason)

    def _end_run(self, job: Job, state: State) -> None:
        if job.run_id and state in RUN_STATUS:
            with self._needs.mlflow.asked():
                self._context.app.mlflow.end_run(job.run_id, RUN_STATUS[state])


def _command(job: Job, attempt: Attempt) -> Command:
    action = "pause" if job.state == State.PAUSING else "cancel"
    return Command.model_validate({"attempt": attempt.number, "generation": attempt.generation + 1, "action": action})


def _take_over(session: Session, job: Job, attempt: Attempt, seen: Seen, standing: Standing | None) -> None:
    """What was observed of an attempt and its job into the database."""
    if standing:
        standing.record(job, repository.attempts(session, job.id), seen.now)
    if seen.run is None or seen.run.gone:
        return
    attempt.heartbeat, attempt.heartbeat_at = seen.beat, seen.beat_at
    newest = seen.run.tags.get(names.TAG_CHECKPOINT, "")
    if newest.startswith(f"{names.checkpoint_folder(attempt.number)}/"):
        attempt.checkpoint = newest

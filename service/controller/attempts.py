"""Advances one job with a live attempt: decides, acts outside of any transaction, and writes what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.adapters.ray_cluster import RayState
from service.controller.context import ACTOR, ControllerContext, StaleState, logged_as
from service.controller.decide import STEADY, Decision, Ended, Hung, NextState, Observation, Patience, decide, settle
from service.controller.dependencies import Unavailable
from service.controller.kind import NoResult, ProgressReport
from service.controller.observing import Observer
from service.controller.queue import Task
from service.controller.starting import attempt_request
from service.counters import ATTEMPTS, GPU_SECONDS, NONE
from service.db.tables import Attempt, Job, now
from service.jobs import lineage, repository
from service.jobs.lifecycle import CANCELLED, PAUSED, RUN_STATUS, explain, note, refused_spec, transition
from service.jobs.state import LIVE, State
from trainer.protocol import names
from trainer.protocol.command import Command
from trainer.protocol.outcome import Reason
from trainer.spec.base import SpecError
from trainer.spec.common import RetrySpec
from trainer.spec.job import parse_spec

log = structlog.get_logger()

SLOW_START = timedelta(seconds=90)
"""Time after which a starting attempt is reported as slow."""
AGAIN = timedelta(seconds=1)
"""Time between two close looks at an attempt that is not known to be over."""
TRIALS_EVERY = timedelta(seconds=2)
"""Time between two readings of a running search's trials."""
NO_RESULT = "Check the artifact storage, then retry the job: another attempt writes the file anew."
RUN_GONE = "Its MLflow run was removed, with everything recorded in it."


@dataclass(frozen=True)
class Change:
    """What was seen of an attempt that goes on, and done about it: to be written into the database."""

    job: Job
    """As it was loaded."""
    attempt: Attempt
    decision: Decision
    observation: Observation
    commanded: bool
    """Whether a command was sent."""
    told: bool
    """Whether its orders are known to the attempt."""
    report: ProgressReport | None


class Attempts:
    """The steps of single jobs. The loop takes those of a glance, a worker those that need a close look."""

    def __init__(self, context: ControllerContext, observer: Observer) -> None:
        self._context, self._dependencies, self._observer = context, context.dependencies, observer
        settings = context.app.settings
        self._patience = Patience(
            command=timedelta(seconds=settings.command_deadline_s),
            heartbeat=timedelta(seconds=settings.heartbeat_limit_s),
            start=timedelta(seconds=settings.start_limit_s),
            stall=timedelta(seconds=settings.stall_limit_s),
        )
        self._written: dict[str, tuple[int, RunView | None, bool]] = {}
        """Of each job: its revision after the last write, and what had been seen then."""

    # --- an attempt that goes on ------------------------------------------------------------------------------------

    def glance(self, job: Job, attempt: Attempt, observation: Observation) -> Change | None:
        """Decide and act on an attempt that Ray says is alive; None where there is nothing to write."""
        decision = decide(job, attempt, observation, self._patience)
        if decision == "wait" and self._written.get(job.id) == _seen(job, attempt, observation):
            return None
        return self._act(job, attempt, decision, observation)

    def write(self, changes: Sequence[Change]) -> None:
        """Write changes in one transaction."""
        written = []
        with self._context.write() as session:
            rows = repository.with_last_attempts(session, [change.job.id for change in changes])
            for change in changes:
                job, attempt = rows.get(change.job.id, (None, None))
                if job is None or attempt is None or attempt.number != change.attempt.number or attempt.ended_at:
                    continue  # a worker has ended it meanwhile
                if change.told and job.revision == change.job.revision:
                    written.append((job, change))
                with logged_as(job):
                    self._apply(session, job, attempt, change)
        for job, change in written:
            self._written[job.id] = _seen(job, change.attempt, change.observation)

    def forget_others(self, job_ids: set[str]) -> None:
        """Forget all other jobs."""
        for job_id in list(self._written):  # a copy: a worker may add to it meanwhile
            if job_id not in job_ids:
                self._written.pop(job_id, None)

    def _act(self, job: Job, attempt: Attempt, decision: Decision, observation: Observation) -> Change:
        """Carry out a decision."""
        commanded = False
        if decision == "submit":
            with self._context.app.database.read() as session:
                reads = self._context.kinds[job.kind].reads(session, parse_spec(job.run_spec))
            request = attempt_request(self._context.app, job, attempt.number, reads)
            with self._dependencies.ray.call():
                self._context.app.ray.submit(attempt.submission_id, request)
        elif decision == "command" or _stops(decision):
            # Also before a stop: Ray 2.60 reports a job that it is just starting as STOPPED, and lets it run.
            commanded = self._command(job, attempt)
            if _stops(decision):
                with self._dependencies.ray.call():
                    self._context.app.ray.stop(attempt.submission_id)
        kind = self._context.kinds[job.kind]
        told = kind.update_orders(self._context, job, observation.run)
        report = kind.report(self._context, job, observation.run)
        return Change(job, attempt, decision, observation, commanded, told, report)

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

    def _apply(self, session: Session, job: Job, attempt: Attempt, change: Change) -> None:
        decision, observation = change.decision, change.observation
        if decision in {"accept", "submit"}:
            attempt.accepted = decision == "accept" or attempt.accepted
        elif decision == "command" or _stops(decision):
            if change.commanded:
                command = _command(change.job, change.attempt)
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
        _record(session, job, attempt, observation, change.report)
        self._update_message(session, job, attempt, observation)

    def _update_message(self, session: Session, job: Job, attempt: Attempt, observation: Observation) -> None:
        """Report problems of a job that continues, and clear the report once they are over."""
        over = observation.ray.ended or observation.ray is RayState.ABSENT
        if attempt.accepted and over and observation.run is None:
            text = f"Attempt {attempt.number} has ended; its metrics are not known yet: MLflow does not answer."
            explain(job, job.reason, text)
        elif job.state == State.STARTING and _is_slow(attempt, observation):
            text = (
                f"Attempt {attempt.number} is slow to start: Ray has not placed its workers yet, or they still import."
            )
            explain(job, None, text)
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

    # --- a job whose attempt is over, or may be ---------------------------------------------------------------------

    def look_closely(self, job_id: str) -> timedelta | None:
        """Ask about one job alone, and end its attempt where that is over; raises `Unavailable`.

        Returns the time until the next look, or None where there is nothing more to see. It may be repeated.
        """
        with self._context.app.database.read() as session:
            job, attempt = repository.with_last_attempts(session, [job_id]).get(job_id, (None, None))
        if job is None or State(job.state) not in LIVE:
            return None
        with logged_as(job):
            return self._look_closely(job, attempt)

    def _look_closely(self, job: Job, attempt: Attempt | None) -> timedelta | None:
        if attempt is None or attempt.ended_at is not None:
            self._without_attempt(job)
            return None
        observation = self._observe_closely(job, attempt)
        decision = decide(job, attempt, observation, self._patience)
        if not isinstance(decision, Ended):
            self.write([self._act(job, attempt, decision, observation)])
            return AGAIN if observation.ray.ended or observation.ray is RayState.ABSENT else None
        if not attempt.accepted:
            self._command(job, attempt)  # in case Ray starts it late
        self._end(job, attempt, decision, observation)
        return None

    def read_trials(self, task: Task) -> timedelta | None:
        """Write the progress of a running search, whose study takes time to read."""
        with self._context.app.database.read() as session:
            job = session.get(Job, task.target)
        if job is None or State(job.state) not in LIVE:
            return None
        report = self._context.kinds[job.kind].report_trials(self._context, job)
        if report:
            with self._context.write() as session:
                row = session.get(Job, job.id)
                if row is None or State(row.state) not in LIVE or row.attempts != job.attempts:
                    return None  # its attempt has ended meanwhile, and what was written then is newer
                report.record(row, repository.attempts(session, job.id), now())
        return TRIALS_EVERY

    def _observe_closely(self, job: Job, attempt: Attempt) -> Observation:
        """Ray's own word on the attempt, its run, and its outcome once it is over; raises `Unavailable`."""
        ray, run = self._observer.ray_state(attempt), self._observer.run_of(job)
        observation = self._observer.observe(job, attempt, ray, run)
        if not (ray.ended or ray is RayState.ABSENT) or not job.artifact_uri:
            return observation
        try:
            return replace(observation, outcome=self._observer.outcome(job.artifact_uri, attempt.number))
        except Unavailable as error:
            if attempt.accepted:
                text = f"Attempt {attempt.number} has ended; its outcome is not known yet: {error}."
                self._context.set_message(job, text)
            raise

    def _without_attempt(self, job: Job) -> None:
        """End a job that is to be cancelled or paused and has no live attempt."""
        ends = {
            State.CANCELLING: (State.CANCELLED, Reason.CANCELLED_BY_USER, CANCELLED),
            State.PAUSING: (State.PAUSED, Reason.PAUSED_BY_USER, PAUSED),
        }
        end = ends.get(State(job.state))
        if end:
            report, _ = self._settle(job, None, end[0], "No attempt runs;")
            self._end_run(job, end[0])
            state, reason, message = end
            message = message.format(continuation=self._continuation(job))
            with self._context.write() as session:
                row = repository.get(session, job.id)
                if row.state != job.state:  # a request to cancel came while it was being paused
                    raise StaleState(f"job {job.id} is {row.state} now")
                if report:
                    report.record(row, repository.attempts(session, job.id), now())
                transition(session, row, state, reason, message, ACTOR)
                if report:
                    report.settled(session, self._context, row)

    def _settle(
        self, job: Job, run: RunView | None, state: State, prefix: str
    ) -> tuple[ProgressReport, None] | tuple[None, tuple[Reason, str]]:
        """The final progress of a job, or why it fails instead: this version may refuse a spec that an earlier one
        stored, and the result of an attempt that has succeeded may be missing or malformed.

        Raises `Unavailable`.
        """
        try:
            with self._context.explain_waiting(job, prefix):
                return self._context.kinds[job.kind].settle(self._context, job, run, state), None
        except SpecError as error:
            log.exception("spec_unreadable", job_id=job.id)
            return None, (Reason.SPEC_ERROR, refused_spec(error))
        except NoResult as error:
            log.exception("result_unreadable", job_id=job.id)
            return None, (Reason.STORAGE_ERROR, f"{prefix} {error}. {NO_RESULT}")

    def _continuation(self, job: Job, newest: str | None = None) -> str:
        """What a job does once it is queued again; ``newest`` is a checkpoint that its row does not have yet."""
        with self._context.app.database.read() as session:
            has_checkpoint = newest is not None or repository.has_checkpoint(session, job)
        return self._context.kinds[job.kind].continuation(has_checkpoint)

    def _end(self, loaded: Job, before: Attempt, ended: Ended, observation: Observation) -> None:
        if observation.outcome is None and observation.ray.ended and ended.state in {"failed", "lost"}:
            # Ray's log is all there is of an attempt that could not store its outcome.
            with self._dependencies.ray.call():
                tail = self._context.app.ray.log_tail(before.submission_id)
            ended = replace(ended, message=f"{ended.message} Its log ends with: {tail}")
        continuation = self._continuation(loaded, ended.checkpoint or _newest_checkpoint(before, observation))
        # Not the whole spec, which may have been stored before a limit that it exceeds: the job ends all the same.
        retry = RetrySpec.model_validate(loaded.run_spec.get("retry", {}))
        following = settle(loaded, ended, retry.max_failures, continuation, self._context.kinds[loaded.kind].advice)
        prefix = f"Attempt {before.number} has ended;"
        report, failure = self._settle(loaded, observation.run, following.state, prefix)
        if failure:
            state = State.CANCELLED if loaded.state == State.CANCELLING else State.FAILED
            following = NextState(state, *failure)
        result = report.result() if report and following.state is State.SUCCEEDED else None
        if report and result:
            following = replace(following, message=report.summary())
        if observation.run and observation.run.gone:
            following = replace(following, message=f"{following.message} {RUN_GONE}")
        self._end_run(loaded, following.state)
        with self._context.write() as session:
            job = repository.get(session, loaded.id)
            attempt = repository.last_attempt(session, job)
            if (
                job.state != loaded.state
                or attempt is None
                or (attempt.number, attempt.ended_at) != (before.number, None)
            ):
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
            if report:
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


def _is_slow(attempt: Attempt, observation: Observation) -> bool:
    return attempt.accepted and observation.now - attempt.started_at > SLOW_START


def _seen(job: Job, attempt: Attempt, observation: Observation) -> tuple[int, RunView | None, bool]:
    """All that decides what is written of an attempt that goes on."""
    slow = job.state == State.STARTING and _is_slow(attempt, observation)
    return job.revision, observation.run, slow

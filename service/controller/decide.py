"""What to do about one job, from what is known of it: no I/O, so that every case can be tested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from service.adapters.mlflow_runs import RunView
from service.adapters.ray_cluster import RayState
from service.db.tables import Attempt, Job
from service.jobs.lifecycle import POLICIES
from service.jobs.schemas import State
from trainer.protocol.outcome import Outcome, Reason

STOP_AGAIN = timedelta(seconds=60)
MAX_DELAY_S = 60
STILL = timedelta(seconds=15)
"""Three heartbeats: an attempt whose cluster has forgotten it is dead once it has missed them."""
STEADY = timedelta(minutes=10)
"""An attempt that lived this long begins the back-off anew."""
HUNG = "The attempt showed no life for too long and was stopped."


@dataclass(frozen=True)
class Patience:
    """How long things may take."""

    command: timedelta
    """Between a command and the attempt's end."""
    heartbeat: timedelta
    """Between two heartbeats."""
    start: timedelta
    """Between an attempt's submission and its first heartbeat."""


@dataclass(frozen=True)
class Seen:
    """What was found out about a job's live attempt."""

    now: datetime
    ray: RayState
    outcome: Outcome | None = None
    """Only looked for once Ray says the attempt is over."""
    run: RunView | None = None
    """None where MLflow is out of reach."""
    beat: float | None = None
    """The attempt's last heartbeat, by its worker's clock."""
    beat_at: datetime | None = None
    """When it was first seen."""
    silent: timedelta = timedelta(0)
    """Since the last new heartbeat was seen, by our clock. Nothing can arrive while MLflow is away: what it has been
    away for does not count."""


@dataclass(frozen=True)
class Ended:
    """The attempt is over."""

    state: Literal["succeeded", "failed", "cancelled", "paused", "lost"]
    reason: Reason | None
    message: str
    checkpoint: str | None = None


Decision = Literal["wait", "accept", "submit", "started", "command", "stop"] | Ended


def decide(job: Job, attempt: Attempt, seen: Seen, patience: Patience) -> Decision:
    """The next thing to do about a live attempt."""
    if seen.ray is RayState.UNKNOWN:
        return "wait"
    if not attempt.accepted and seen.ray is not RayState.ABSENT:
        return "accept"
    if not attempt.accepted and seen.beat is None and seen.outcome is None:
        if job.state in {State.CANCELLING, State.PAUSING}:
            return Ended("cancelled" if job.state == State.CANCELLING else "paused", None, "ended before it started")
        return _not_started(seen)
    if not (seen.ray.ended or seen.ray is RayState.ABSENT):
        return _alive(job, attempt, seen, patience)
    # A head that was restarted says nothing of workers on other nodes: they end when they miss it.
    forgotten = seen.ray is RayState.ABSENT and seen.outcome is None
    may_live = forgotten and seen.beat is not None and seen.silent < STILL
    # Metrics, tags and the registered version belong to the end: it waits for MLflow.
    return "wait" if seen.run is None or may_live else _ending(job, attempt, seen)


def _not_started(seen: Seen) -> Decision:
    if seen.run is None:
        return "wait"  # without MLflow it is not known whether it has run
    return Ended("lost", Reason.STORAGE_ERROR, "The attempt had not started.") if seen.run.gone else "submit"


def _ending(job: Job, attempt: Attempt, seen: Seen) -> Ended:
    outcome = seen.outcome
    # Told to end by our own stop, the driver cannot know whose it was.
    ours = attempt.stop_asked_at is not None and (outcome is None or outcome.reason is Reason.PREEMPTED)
    if ours and job.state in {State.CANCELLING, State.PAUSING}:
        return Ended("cancelled" if job.state == State.CANCELLING else "paused", None, "Stopped through Ray.")
    if ours and seen.ray is not RayState.ABSENT:
        return Ended("lost", Reason.DEADLINE_EXCEEDED, HUNG)
    if outcome:
        return Ended(outcome.state, outcome.reason, outcome.message, outcome.checkpoint)
    if seen.ray is RayState.ABSENT:
        return Ended("lost", Reason.CLUSTER_LOST, "Ray no longer knows the attempt: its head was restarted.")
    if seen.beat is None:
        return Ended("failed", Reason.START_FAILED, "The attempt ended before it could run.")
    return Ended("lost", Reason.WORKER_FAILED, "The attempt ended without a word.")


def _alive(job: Job, attempt: Attempt, seen: Seen, patience: Patience) -> Decision:
    if job.state in {State.CANCELLING, State.PAUSING}:
        return _told_to_end(job, attempt, seen, patience)
    if attempt.stop_asked_at:
        return _stop_again(attempt.stop_asked_at, seen)
    if seen.run and seen.run.gone:
        return "wait"  # no sign of it can arrive; whoever removed the run may put it back
    if seen.beat is None:
        late = seen.run is not None and seen.now - attempt.started_at > patience.start
        return "stop" if late else "wait"
    if job.state == State.STARTING:
        return "started"
    return "stop" if seen.silent > patience.heartbeat else "wait"


def _told_to_end(job: Job, attempt: Attempt, seen: Seen, patience: Patience) -> Decision:
    if attempt.stop_asked_at:
        return _stop_again(attempt.stop_asked_at, seen)
    if seen.run and seen.beat is None:
        return "stop"
    wanted = "cancel" if job.state == State.CANCELLING else "pause"
    overdue = attempt.commanded_at is not None and seen.now - attempt.commanded_at > patience.command
    if overdue and attempt.command in {wanted, None}:  # None: it could not be told
        return "stop"
    return "wait" if attempt.command == wanted else "command"


def _stop_again(asked: datetime, seen: Seen) -> Decision:
    return "stop" if seen.now - asked > STOP_AGAIN else "wait"


@dataclass(frozen=True)
class Next:
    """Where a job goes when its attempt is over."""

    state: State
    reason: Reason | None
    message: str
    charged: bool = False
    delay: timedelta = timedelta(0)
    """Before the next attempt, in `recovering`."""


def _sentence(text: str) -> str:
    """With a full stop: what an attempt said last may be an exception's own text."""
    return f"{text}." if text and text[-1] not in ".!?…" else text


def settle(job: Job, ended: Ended, max_failures: int, goes_on: str) -> Next:
    """What an attempt's end means for its job; ``goes_on`` says how a cancelled one continues.

    A job that has succeeded gets its message from its kind.
    """
    if ended.state == "succeeded":
        return Next(State.SUCCEEDED, None, "Done.")
    if job.state == State.CANCELLING:
        return Next(State.CANCELLED, Reason.CANCELLED_BY_USER, f"Cancelled. Retry it to go on {goes_on}.")
    if ended.state == "cancelled" and job.state != State.PAUSING:  # nobody asked for it: it obeyed our stop after all
        ended = replace(ended, reason=Reason.DEADLINE_EXCEEDED, message=HUNG)
    reason = ended.reason or Reason.WORKER_FAILED
    policy = POLICIES.get(reason, POLICIES[Reason.WORKER_FAILED])
    if ended.state == "paused" or (job.state == State.PAUSING and policy.retried):
        return Next(State.PAUSED, Reason.PAUSED_BY_USER, "Paused. Resume it to go on from the last checkpoint.")
    text = f"{_sentence(ended.message)} {policy.advice}".strip()
    failures = job.failures + policy.charged
    if not policy.retried:
        return Next(State.FAILED, reason, text, charged=policy.charged)
    if failures > max_failures:
        return Next(
            State.FAILED, reason, f"{text} No attempt is left: {failures} failures, {max_failures} allowed.", True
        )
    delay = timedelta(seconds=min(MAX_DELAY_S, 2 ** min(job.restarts, 10)))
    left = f"{max_failures - failures} more failures are allowed" if policy.charged else "not counted as a failure"
    return Next(State.RECOVERING, reason, f"{text} Trying again in {delay.seconds} s; {left}.", policy.charged, delay)

"""Decides the next step for one job from an observation. No I/O, so that every case can be tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal

from service.adapters.mlflow_runs import RunView
from service.adapters.ray_cluster import RayState
from service.db.tables import Attempt, Job
from service.jobs.lifecycle import CANCELLED, PAUSED, POLICIES
from service.jobs.state import State
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.progress import Activity

STOP_AGAIN = timedelta(seconds=60)
"""Time between two stop requests to Ray."""
MAX_DELAY_S = 60
"""Longest delay before the next attempt."""
DEAD_AFTER = timedelta(seconds=15)
"""Three heartbeats: an attempt that Ray has forgotten is considered dead once it has missed them."""
STEADY = timedelta(minutes=10)
"""An attempt that lived this long resets the back-off."""
SILENT = "The attempt sent no heartbeat for too long and was stopped."


@dataclass(frozen=True)
class Patience:
    """Time limits."""

    command: timedelta
    """From a command to the attempt's end."""
    heartbeat: timedelta
    """Between two heartbeats."""
    start: timedelta
    """From an attempt's submission to its first heartbeat."""
    stall: timedelta
    """Between two steps of training."""


@dataclass(frozen=True)
class Observation:
    """What is known of a job's live attempt."""

    now: datetime
    ray: RayState
    outcome: Outcome | None = None
    """Only read once Ray reports that the attempt is over."""
    run: RunView | None = None
    """None where MLflow is unavailable."""
    beat: float | None = None
    """The attempt's last heartbeat, by its worker's clock."""
    beat_at: datetime | None = None
    """When the controller first saw that heartbeat."""
    silent: timedelta = timedelta(0)
    """Time since the last new heartbeat. Time without MLflow does not count, as no heartbeat could arrive. Like the
    following ones, it is counted by this process's own looks, not by a clock: see `Watch`."""
    starting: timedelta = timedelta(0)
    """Time without a first heartbeat."""
    commanded: timedelta = timedelta(0)
    """Time since the last command was sent, or was first due."""
    stopping: timedelta = timedelta(0)
    """Time since Ray was last asked to stop the attempt."""

    def activity(self, attempt: Attempt) -> Activity | None:
        """What the attempt was doing at its last heartbeat; None if it did not say."""
        return self.run.activity(attempt.number) if self.run else None


@dataclass(frozen=True)
class Hung:
    """The attempt is alive and does nothing: Ray is to stop it. It ends with this reason and message."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Ended:
    """The attempt is over."""

    state: Literal["succeeded", "failed", "cancelled", "paused", "lost"]
    reason: Reason | None
    message: str
    checkpoint: str | None = None


Decision = Literal["wait", "accept", "submit", "started", "command", "stop"] | Hung | Ended


def decide(job: Job, attempt: Attempt, observation: Observation, patience: Patience) -> Decision:
    """The next step for a live attempt."""
    if observation.ray is RayState.UNKNOWN:
        return "wait"
    if not attempt.accepted and observation.ray is not RayState.ABSENT:
        return "accept"
    if not attempt.accepted and observation.beat is None and observation.outcome is None:
        if job.state in {State.CANCELLING, State.PAUSING}:
            return Ended(
                "cancelled" if job.state == State.CANCELLING else "paused", None, "It was ended before it started."
            )
        return _decide_unsubmitted(observation)
    if not (observation.ray.ended or observation.ray is RayState.ABSENT):
        return _decide_alive(job, attempt, observation, patience)
    # A restarted head knows nothing of workers on other nodes, which end once they miss it.
    forgotten = observation.ray is RayState.ABSENT and observation.outcome is None
    may_live = forgotten and observation.beat is not None and observation.silent < DEAD_AFTER
    # The end needs metrics, tags and the registered version: it waits for MLflow.
    return "wait" if observation.run is None or may_live else _decide_end(job, attempt, observation)


def _decide_unsubmitted(observation: Observation) -> Decision:
    if observation.run is None:
        return "wait"  # whether it has run is unknown without MLflow
    if observation.run.gone:
        return Ended("lost", Reason.STORAGE_ERROR, "The attempt had not started when its MLflow run was removed.")
    return "submit"


def _decide_end(job: Job, attempt: Attempt, observation: Observation) -> Ended:
    outcome = observation.outcome
    # The driver reports any stop as preemption: it cannot know that the stop was ours.
    stopped_by_us = attempt.stop_asked_at is not None and (outcome is None or outcome.reason is Reason.PREEMPTED)
    ending = job.state in {State.CANCELLING, State.PAUSING}
    if stopped_by_us and ending:
        return Ended("cancelled" if job.state == State.CANCELLING else "paused", None, "Stopped through Ray.")
    # Before each stop goes the command to cancel, which the attempt may have obeyed although its job goes on.
    obeyed = outcome is not None and outcome.state == "cancelled" and not ending
    if obeyed or (stopped_by_us and observation.ray is not RayState.ABSENT):
        reason = Reason(attempt.reason) if attempt.reason else Reason.DEADLINE_EXCEEDED
        return Ended("lost", reason, attempt.message or SILENT, outcome.checkpoint if outcome else None)
    if outcome:
        return Ended(outcome.state, outcome.reason, outcome.message, outcome.checkpoint)
    if observation.ray is RayState.ABSENT:
        return Ended("lost", Reason.CLUSTER_LOST, "Ray no longer knows the attempt: its head was restarted.")
    if observation.beat is None:
        return Ended("failed", Reason.START_FAILED, "The attempt ended before it could run.")
    return Ended("lost", Reason.WORKER_FAILED, "The attempt ended without an outcome.")


def _decide_alive(job: Job, attempt: Attempt, observation: Observation, patience: Patience) -> Decision:
    if job.state in {State.CANCELLING, State.PAUSING}:
        return _decide_stopping(job, attempt, observation, patience)
    if attempt.stop_asked_at:
        return _stop_again(observation)
    if observation.run and observation.run.gone:
        return "wait"  # no sign of it can arrive; whoever removed the run may put it back
    if observation.beat is None:
        late = observation.run is not None and observation.starting > patience.start
        return Hung(Reason.DEADLINE_EXCEEDED, SILENT) if late else "wait"
    if job.state == State.STARTING:
        return "started"
    return _hung(observation, observation.activity(attempt), patience) or "wait"


def _hung(observation: Observation, activity: Activity | None, patience: Patience) -> Hung | None:
    """Whether heartbeats have stopped, or training stands still; no other phase has a limit."""
    if observation.silent > patience.heartbeat:
        return Hung(Reason.DEADLINE_EXCEEDED, SILENT)
    stall = activity.stall(patience.stall.total_seconds()) if activity else None
    return Hung(Reason.STALLED, stall) if stall else None


def _decide_stopping(job: Job, attempt: Attempt, observation: Observation, patience: Patience) -> Decision:
    if attempt.stop_asked_at:
        return _stop_again(observation)
    if observation.run and observation.beat is None:
        return "stop"
    command = "cancel" if job.state == State.CANCELLING else "pause"
    overdue = attempt.commanded_at is not None and observation.commanded > patience.command
    if overdue and attempt.command in {command, None}:  # None: the command could not be sent
        return "stop"
    return "wait" if attempt.command == command else "command"


def _stop_again(observation: Observation) -> Decision:
    return "stop" if observation.stopping > STOP_AGAIN else "wait"


@dataclass(frozen=True)
class NextState:
    """The state of a job after its attempt has ended."""

    state: State
    reason: Reason | None
    message: str
    charged: bool = False
    """Whether the end counts as a failure of the job."""
    delay: timedelta = timedelta(0)
    """Time before the next attempt, in `recovering`."""


def _sentence(text: str) -> str:
    """The text with a full stop: an attempt's message may be that of an exception."""
    return f"{text}." if text and text[-1] not in ".!?…" else text


def settle(
    job: Job, ended: Ended, max_failures: int, continuation: str, advice: Mapping[Reason, str] = MappingProxyType({})
) -> NextState:
    """The next state of a job whose attempt has ended; ``continuation`` is what it does once it is queued
    again, as `JobKind.continuation` says, and ``advice`` is `JobKind.advice`.

    The message of a job that has succeeded is replaced by its kind.
    """
    if ended.state == "succeeded":
        return NextState(State.SUCCEEDED, None, "Done.")
    if job.state == State.CANCELLING:
        return NextState(State.CANCELLED, Reason.CANCELLED_BY_USER, CANCELLED.format(continuation=continuation))
    reason = ended.reason or Reason.WORKER_FAILED
    policy = POLICIES.get(reason, POLICIES[Reason.WORKER_FAILED])
    if ended.state == "paused" or (job.state == State.PAUSING and policy.retried):
        return NextState(State.PAUSED, Reason.PAUSED_BY_USER, PAUSED.format(continuation=continuation))
    text = f"{_sentence(ended.message)} {advice.get(reason, policy.advice).format(continuation=continuation)}".strip()
    failures = job.failures + policy.charged
    if not policy.retried:
        return NextState(State.FAILED, reason, text, charged=policy.charged)
    if failures > max_failures:
        left = f"No attempts are left: {failures} failures, {max_failures} allowed. Retry the job to {continuation}."
        return NextState(State.FAILED, reason, f"{text} {left}", True)
    delay = timedelta(seconds=min(MAX_DELAY_S, 2 ** min(job.restarts, 10)))
    allowance = f"{max_failures - failures} more failures are allowed" if policy.charged else "not counted as a failure"
    return NextState(
        State.RECOVERING, reason, f"{text} Trying again in {delay.seconds} s; {allowance}.", policy.charged, delay
    )

"""The outcome with which an attempt reports how it ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from trainer.protocol.message import Message


class Reason(StrEnum):
    """Why an attempt or a job ended, or waits."""

    WORKER_FAILED = "worker_failed"
    """A worker process died, or raised an error for which there is no other reason."""
    OUT_OF_MEMORY = "out_of_memory"
    NODE_LOST = "node_lost"
    CLUSTER_LOST = "cluster_lost"
    """Ray no longer knows the attempt and it left no outcome."""
    LOSS_NOT_FINITE = "loss_not_finite"
    DATA_ERROR = "data_error"
    STORAGE_ERROR = "storage_error"
    SPEC_ERROR = "spec_error"
    START_FAILED = "start_failed"
    """The attempt's process ended before it could run."""
    PREEMPTED = "preempted"
    """Its node was drained or taken away, or it was stopped from outside."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """It sent no heartbeat for too long and was stopped."""
    STALLED = "stalled"
    """It sent heartbeats, but training stood still for too long, and it was stopped."""
    INSUFFICIENT_RESOURCES = "insufficient_resources"
    TRIALS_FAILED = "trials_failed"
    """More trials of a search failed than its budget allows."""
    INFEASIBLE = "infeasible"
    """Only for trials: the combination of values is not a valid spec."""
    STOPPED_BY_USER = "stopped_by_user"
    """Only for trials: a user stopped this one."""
    USER_LIMIT = "user_limit"
    """Its owner already runs the most jobs that are allowed at a time."""
    CANCELLED_BY_USER = "cancelled_by_user"
    PAUSED_BY_USER = "paused_by_user"


class Outcome(Message):
    """How an attempt ended, by its own account; the file `attempts/<n>/outcome.json`."""

    state: Literal["succeeded", "failed", "cancelled", "paused"]
    reason: Reason | None = None
    message: str = ""
    checkpoint: str | None = None
    """The newest committed checkpoint, relative to the run's artifact folder."""
    concerns_all_trials: bool = False
    """Only for trials: whatever its values, any other trial of the search would fail in the same way."""

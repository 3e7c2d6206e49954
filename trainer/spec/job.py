"""What passes between the control plane and an attempt."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from trainer.spec.base import Problem, SpecError
from trainer.spec.pretrain import PretrainSpec

KINDS: Final = ("pretrain",)

ATTEMPT_VARIABLE: Final = "RCMAE_ATTEMPT"
"""Environment variable that holds an `AttemptRequest` as JSON."""


class Reason(StrEnum):
    """Why an attempt or a job ended, or waits."""

    WORKER_FAILED = "worker_failed"
    """A worker process died or raised an error of no other kind."""
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
    """Its node was drained or taken away, or somebody else stopped it."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """It showed no life for too long and was stopped."""
    INSUFFICIENT_RESOURCES = "insufficient_resources"
    USER_LIMIT = "user_limit"
    """Its owner runs as many jobs as are allowed at a time."""
    CANCELLED_BY_USER = "cancelled_by_user"
    PAUSED_BY_USER = "paused_by_user"


class Message(BaseModel):
    """A stored or sent record: reading ignores fields a newer version may have added."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class AttemptRequest(Message):
    """Everything an attempt is told at its start."""

    job_id: str
    attempt: int
    """1 for the first."""
    run_id: str
    """The job's MLflow run, made once before the first attempt."""
    tracking_uri: str
    artifact_uri: str
    """The run's artifact folder."""
    since_attempt: int = 1
    """Go on from the newest committed checkpoint of this attempt or a later one; its own number begins again."""
    spec: PretrainSpec
    """The resolved spec."""


class Command(Message):
    """What the service wants a running attempt to do; the run tag `rcmae.command`."""

    attempt: int
    generation: int
    """Rises with each command of an attempt."""
    action: Literal["cancel", "pause"]


class Outcome(Message):
    """An attempt's own last word; the file `attempts/<n>/outcome.json`."""

    state: Literal["succeeded", "failed", "cancelled", "paused"]
    reason: Reason | None = None
    message: str = ""
    checkpoint: str | None = None
    """The newest committed checkpoint, relative to the run's artifact folder."""


class LogLine(Message):
    """One line of an attempt's logs."""

    time: float
    """Seconds since 1970."""
    level: Literal["debug", "info", "warning", "error"]
    source: str
    """`driver` or `rank-<n>`."""
    message: str


def parse_spec(data: object) -> PretrainSpec:
    """The spec in a mapping; raises `SpecError`, also for a kind that does not exist."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if isinstance(data, dict) and "kind" in data and kind not in KINDS:
        raise SpecError([Problem("kind", "/kind", kind, f"must be one of: {', '.join(KINDS)}")])
    return PretrainSpec.parse(data)

"""What passes between the control plane and an attempt."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.spec.base import Problem, SpecError
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec
from trainer.spec.search import SearchSpec

JobSpec = PretrainSpec | PublishSpec | SearchSpec
"""A spec of any kind."""

ATTEMPT_VARIABLE: Final = "RCMAE_ATTEMPT"
"""Environment variable that holds an `AttemptRequest` as JSON."""


class Kind(StrEnum):
    """Of a job, as its spec names it."""

    PRETRAIN = "pretrain"
    PUBLISH = "publish"
    SEARCH = "search"


SPECS: Final[dict[str, type[JobSpec]]] = {
    Kind.PRETRAIN: PretrainSpec,
    Kind.PUBLISH: PublishSpec,
    Kind.SEARCH: SearchSpec,
}


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
    TRIALS_FAILED = "trials_failed"
    """More trials of a search failed than its budget allows."""
    INFEASIBLE = "infeasible"
    """Of a trial: its combination of values is no spec."""
    USER_LIMIT = "user_limit"
    """Its owner runs as many jobs as are allowed at a time."""
    CANCELLED_BY_USER = "cancelled_by_user"
    PAUSED_BY_USER = "paused_by_user"


class Message(BaseModel):
    """A stored or sent record: reading ignores fields a newer version may have added."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Source(Message):
    """The pretraining job whose checkpoint a `publish` job registers."""

    job_id: str
    run_id: str
    artifact_uri: str
    """Its run's artifact folder."""
    since_attempt: int = 1
    """Checkpoints of this attempt and later ones count."""


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
    request_id: str | None = None
    """Of the request that submitted the job, for the logs."""
    dataset_roots: tuple[str, ...] | None = None
    """Where datasets may lie, links followed; None is anywhere."""
    source: Source | None = None
    """Of a `publish` job, and of no other."""
    spec: Annotated[JobSpec, Field(discriminator="kind")]
    """The resolved spec."""

    @model_validator(mode="after")
    def _source_fits_kind(self) -> Self:
        if (self.source is not None) != isinstance(self.spec, PublishSpec):
            raise ValueError(f"source: a publish job has one, and no other; the kind is {self.spec.kind}")
        return self


class Command(Message):
    """What the service wants a running attempt to do; the run tag `rcmae.command`."""

    attempt: int
    generation: int
    """Rises with each command of an attempt."""
    action: Literal["cancel", "pause"]


class SearchOrders(Message):
    """What a running search is to do; the run tag `rcmae.search`, written whenever it changes."""

    trials: int
    concurrency: int
    max_failed: int
    max_hours: float | None = None
    draining: bool = False
    """Start no other trial; those that run finish."""
    stopped: tuple[int, ...] = ()
    """Numbers of trials that are to end now, as they are."""


class Outcome(Message):
    """An attempt's own last word; the file `attempts/<n>/outcome.json`."""

    state: Literal["succeeded", "failed", "cancelled", "paused"]
    reason: Reason | None = None
    message: str = ""
    checkpoint: str | None = None
    """The newest committed checkpoint, relative to the run's artifact folder."""


class Newest(Message):
    """An attempt's newest metrics; the run tag `rcmae.newest`."""

    attempt: int
    step: int
    values: dict[str, float]
    """The newest value of every metric that the attempt has logged."""
    images_per_s: float | None = None
    """By the clock since its first record, with evaluations and checkpoints; None before there are two."""


class LogLine(Message):
    """One line of an attempt's logs."""

    time: float
    """Seconds since 1970."""
    level: Literal["debug", "info", "warning", "error"]
    source: str
    """`driver` or `rank-<n>`."""
    message: str


def parse_spec(data: object) -> JobSpec:
    """The spec in a mapping; raises `SpecError`, also for a kind that does not exist."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if isinstance(data, dict) and "kind" in data and kind not in list(Kind):
        raise SpecError([Problem("kind", "/kind", kind, f"must be one of: {', '.join(Kind)}")])
    return SPECS[str(kind) if kind else Kind.PRETRAIN].parse(data)


def parse_pretrain(data: object) -> PretrainSpec:
    """The pretraining spec in a mapping; raises `SpecError`, also for a spec of another kind."""
    spec = parse_spec(data)
    if not isinstance(spec, PretrainSpec):
        raise SpecError([Problem("kind", "/kind", spec.kind, "must be pretrain here")])
    return spec

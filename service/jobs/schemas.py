"""What the jobs' routes take and give. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    Strict,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.http.schemas import Body, Page, View
from trainer.protocol.logs import LogLine
from trainer.spec.common import Labels, Priority

Level = Literal["debug", "info", "warning", "error"]
"""Of a log line, by weight."""
LAST_ATTEMPT = 1_000_000
"""No job has more attempts."""


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in {State.SUCCEEDED, State.FAILED, State.CANCELLED}


class Progress(View):
    """How far training is."""

    epoch: float
    """Epochs done, with the share of the present one."""
    epochs: int
    step: int
    """Optimiser steps done."""
    steps: int | None = None
    """Optimiser steps of the whole run."""
    samples: int | None = None
    images_per_s: float | None = None
    """Of training alone, since the last record."""
    data_wait_fraction: float | None = None
    """Share of the training time in which it waited for images, 0..1."""
    loss: float | None = None
    eta_s: float | None = None
    """Seconds to the end at the rate measured over the attempt so far, with its evaluations and checkpoints; null
    before an attempt has been measured, and while none runs."""
    gpu_hours: float = 0.0
    """GPUs times hours, from each attempt's submission to its end, over all attempts."""


class TrialCounts(View):
    """A search's trials by state, repeats among them."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed


class SearchProgress(View):
    """How far a search is."""

    trials: TrialCounts
    budget: int
    """Trials in all, without repeats."""
    best_trial: int | None = None
    """Number of the best one so far; of several objectives the first one's best."""
    best_value: float | None = None
    """Of the first objective."""
    eta_s: float | None = None
    """Seconds to the end of its budget at its pace so far; null before a trial has ended, and while it does not run."""
    gpu_hours: float = 0.0
    """GPUs times hours, from each attempt's submission to its end, over all attempts."""


class PromotedFrom(View):
    """The trial that a job was promoted from."""

    search: str
    """The search's job id."""
    trial: int
    """The trial's number."""


class BackboneRef(View):
    name: str
    version: int


class Result(View):
    """What a job left behind."""

    metrics: dict[str, float] = Field({})
    """The last value of each evaluation metric and of the losses."""
    backbone: BackboneRef | None = None
    """The newest version that it registered itself, if the spec asked for one."""
    backbones: list[BackboneRef] = Field([])
    """Every version that its training has become: those it registered, and checkpoints of it that were published."""


class JobView(View):
    """A job."""

    id: str
    kind: str
    name: str
    state: State
    reason: str | None
    """Typed cause of the state, for programs."""
    message: str
    """The same for people, with what to do next."""
    owner: str
    priority: int
    labels: dict[str, str]
    notes: str = ""
    progress: Progress | SearchProgress | None
    promoted_from: PromotedFrom | None = None
    """The search's trial that it was promoted from; null for others."""
    created_at: datetime
    started_at: datetime | None
    """When the first attempt began to train."""
    ended_at: datetime | None
    attempts: int
    run_id: str | None
    """The job's MLflow run."""
    spec: dict[str, Any]
    """As submitted, with defaults; once the job was admitted, with every `auto` that the cluster decides filled in."""
    result: Result | None


class Parameters(View):
    encoder: int
    decoder: int


class Steps(View):
    train_images: int
    held_out_images: int
    steps_per_epoch: int
    steps: int


class Gang(View):
    cpus: int
    gpus: int


class PlanView(View):
    """What a spec would need."""

    spec: dict[str, Any]
    """The resolved spec; submitting it runs the same."""
    parameters: Parameters
    steps: Steps | None
    """Null where the dataset's number of images is not known yet."""
    memory_per_worker_bytes: int
    """Estimated."""
    gang: Gang
    """Resources of all workers together."""
    fits: Literal["now", "later", "never"]
    """When it would start, were it submitted now."""
    message: str
    """Why."""


class EventView(View):
    id: int
    time: datetime
    state: State
    reason: str | None
    message: str
    actor: str
    """Who caused it: a token's owner, or `controller`."""


class AttemptView(View):
    number: int
    submission_id: str
    state: str
    """`submitted`, `running`, `succeeded`, `failed`, `cancelled`, `paused` or `lost`."""
    reason: str | None
    message: str
    workers: int | None = None
    """Processes that train together."""
    gpus: int | None = None
    """Of all of them."""
    heartbeat_at: datetime | None = None
    """When it last showed life."""
    started_at: datetime
    ended_at: datetime | None
    checkpoint: str | None
    """Newest committed checkpoint, below the run's artifact folder."""


class LogView(LogLine):
    attempt: int


class LogPage(Page[LogView]):
    """Log lines. `next_cursor` is there as soon as there are logs: ask with it again for lines that came since."""

    more: bool = False
    """True where there may be more to read now: the page was full, or so much was looked through that it ended early,
    without any line perhaps. Ask on with `next_cursor` at once."""


class Point(View):
    """Points of neighbouring steps as one, where a curve has more than were asked for."""

    step: int
    """The last one's."""
    value: float
    """The last one's."""
    min: float
    max: float
    time: datetime
    """When the last one was logged."""


class MetricsView(View):
    series: dict[str, list[Point]]
    """By metric key; one point a step, the latest attempt's."""


class JobsMetricsView(View):
    """Curves of several jobs."""

    jobs: dict[str, dict[str, list[Point]]]
    """By job, then by metric key."""


class CheckpointView(View):
    """A committed checkpoint: a later attempt can go on from it."""

    attempt: int
    step: int
    epoch: float | None
    """Null where the steps of an epoch are not known."""
    path: str
    """Its folder, below the run's artifact folder."""
    bytes: int
    created_at: datetime
    """When it was committed."""
    best: bool
    """Of those that are kept, the one with the lowest reconstruction ratio: retention never removes it."""
    metrics: dict[str, float]
    """Of an evaluation at this very step."""


class MetricsTick(View):
    """Data of a stream's event `metrics`."""

    step: int
    values: dict[str, float]
    """The newest value of every metric."""


class LogBatch(View):
    """Data of a stream's event `log`."""

    lines: list[LogView]
    """At most 200."""


class JobsChanged(View):
    """Data of the event `jobs` of the stream of all jobs."""

    jobs: list[str]
    """Ids of those whose state, message or progress has changed."""


class ImageView(View):
    step: int
    epoch: float | None = None
    """None while the steps of an epoch are not known."""
    name: str
    url: str
    """Where the PNG is, below the server's address."""


class Deletion(View):
    """What goes with a job that is deleted."""

    job_id: str
    run_id: str | None
    """Its MLflow run."""
    artifact_uri: str | None
    """The run's artifact folder: checkpoints, pictures, logs."""
    files: int
    """In that folder and of the backbones."""
    bytes: int
    backbones: list[BackboneRef]
    """Registered versions that it made."""


class ResumeBody(Body):
    resources: dict[str, StrictInt | Literal["auto"]] = Field({})
    """Other `resources` than before, such as `{"workers": 4}`; `auto` is what the cluster has now."""


class RetryBody(ResumeBody):
    from_scratch: StrictBool = False
    """Begin again instead of going on from the last checkpoint."""


class PatchBody(Body):
    """What may be changed about a job; what is left out stays."""

    priority: Annotated[Priority, Strict()] | None = None
    """Jobs of higher priority start first; only while the job has not ended."""
    labels: Labels | None = None
    """All of the job's labels."""
    notes: str | None = Field(None, max_length=10_000)
    """Text of your own."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("give a value, or leave it out")
        return value

    @model_validator(mode="after")
    def _something_given(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_given", "give priority, labels or notes")
        return self

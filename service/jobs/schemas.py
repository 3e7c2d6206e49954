"""What the jobs' routes take and give. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trainer.spec.job import LogLine
from trainer.spec.pretrain import Labels, Priority

Item = TypeVar("Item")


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


class View(BaseModel):
    """What the API answers: field docs go into OpenAPI; a newer server may add fields."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")


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
    loss: float | None = None
    eta_s: float | None = None
    """Seconds to the end at the present rate."""


class BackboneRef(View):
    name: str
    version: int


class Result(View):
    """What a job left behind."""

    metrics: dict[str, float] = {}
    """The last value of each evaluation metric and of the losses."""
    backbone: BackboneRef | None = None
    """The registered version, if the spec asked for one."""


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
    progress: Progress | None
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


class Page(View, Generic[Item]):
    items: list[Item]
    next_cursor: str | None = None
    """Give it as `cursor` for the items that follow; null at the end."""


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
    heartbeat_at: datetime | None = None
    """When it last showed life."""
    started_at: datetime
    ended_at: datetime | None
    checkpoint: str | None
    """Newest committed checkpoint, below the run's artifact folder."""


class LogView(LogLine):
    attempt: int


class Point(View):
    step: int
    value: float
    time: datetime


class MetricsView(View):
    series: dict[str, list[Point]]
    """By metric key; one point a step, the latest attempt's."""


class ImageView(View):
    step: int
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


class Body(BaseModel):
    """What a verb is told: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ResumeBody(Body):
    resources: dict[str, int | Literal["auto"]] = {}
    """Other `resources` than before, such as `{"workers": 4}`; `auto` is what the cluster has now."""


class RetryBody(ResumeBody):
    from_scratch: bool = False
    """Begin again instead of going on from the last checkpoint."""


class PatchBody(Body):
    """What may be changed about a job; what is left out stays."""

    priority: Priority | None = None
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

"""Request and response models of jobs: what a job is, how far it is, and what is asked of it. Pydantic only: the client
imports this module. `output_schemas` has what a run leaves: logs, metrics, checkpoints and images."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, StrictBool, StrictInt

from service.http.schemas import Body, Patch, View
from service.jobs.state import State
from trainer.protocol.embeddings import Embeddings
from trainer.protocol.inspection import Inspection, Warned
from trainer.spec.common import Labels, Priority

EMPTY_LIST: Any = Field(default_factory=list, json_schema_extra={"default": []})
"""The default of a field of a list's items: pydantic makes a deep copy of a plain `[]` for each of them, slowly."""


class Progress(View):
    """Progress of training."""

    epoch: float
    """Epochs completed, including the fraction of the current one."""
    epochs: int
    step: int
    """Optimiser steps completed."""
    steps: int | None = None
    """Optimiser steps of the whole run."""
    samples: int | None = None
    images_per_s: float | None = None
    """Throughput of training alone, since the last record."""
    data_wait_fraction: float | None = None
    """Fraction of the training time spent waiting for images, 0..1."""
    loss: float | None = None
    eta_s: float | None = None
    """Seconds to the end, at the average rate of the current attempt, with its evaluations and checkpoints; null before
    that is known, and while no attempt runs."""
    gpu_hours: float = 0.0
    """GPU hours of all attempts, each from its submission to its end."""
    labels: str = ""
    """What labels the images have, and where they are from."""
    warnings: list[Warned] = EMPTY_LIST
    """What the attempt decided about the data, and what it could not use."""


class TrialCounts(View):
    """Number of a search's trials by state, including repeats."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed


class SearchProgress(View):
    """Progress of a search."""

    trials: TrialCounts
    budget: int
    """Total number of trials, without repeats."""
    best_trial: int | None = None
    """Number of the best trial so far; with several objectives, by the first."""
    best_value: float | None = None
    """Its value of the first objective."""
    eta_s: float | None = None
    """Seconds to the end of the budget at the average pace; null before a trial has ended, and while none runs."""
    gpu_hours: float = 0.0
    """GPU hours of all attempts, each from its submission to its end."""


class InspectionProgress(View):
    """Progress of a job that inspects a dataset."""

    inspected: int
    """Images that it has decoded."""
    total: int
    """Images to decode: those that no job of the node has decoded before."""
    images_per_s: float | None = None
    eta_s: float | None = None
    """Seconds to the end at the average rate; null before that is known, and while no attempt runs."""


class EmbeddingProgress(View):
    """Progress of a job that computes features."""

    embedded: int
    """Images whose features are computed."""
    total: int
    images_per_s: float | None = None
    """At the average rate of the attempt; files of earlier attempts count as soon as they have been checked."""
    eta_s: float | None = None
    """Seconds to the end at that rate; null before that is known, and while no attempt runs."""
    warnings: list[Warned] = EMPTY_LIST
    """What was decided about the data and the weights, and what could not be used."""


class ImportProgress(View):
    """Progress of a job that imports weights."""

    phase: str
    """`reading`, `checking` that they compute the same, `writing` all formats, or `registering`."""
    done: int
    """Phases that are complete."""
    phases: int
    """How many there are."""


class EvaluationProgress(View):
    """Progress of an evaluation."""

    done: int
    """Measurements that are complete: each is one protocol with one seed on one network."""
    total: int
    measuring: str = ""
    """What is being measured now, in words."""
    scores: dict[str, float] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """The scores that are complete, by metric key."""
    eta_s: float | None = None
    """Seconds to the end if further measurements take as long as those of this attempt did; null before that is known,
    and while no attempt runs."""
    gpu_hours: float = 0.0
    """GPU hours of all attempts, each from its submission to its end."""
    warnings: list[Warned] = EMPTY_LIST
    """What was decided for people, and what they should know."""


AnyProgress = Progress | SearchProgress | InspectionProgress | EmbeddingProgress | ImportProgress | EvaluationProgress
"""How far a job of any kind is."""


class PromotedFrom(View):
    """The trial from which a job was promoted."""

    search: str
    """The search's job id."""
    trial: int
    """The trial's number."""


class BackboneRef(View):
    name: str
    version: int


class Result(View):
    """The outcome of a job."""

    metrics: dict[str, float] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """The last value of each evaluation metric and loss."""
    backbone: BackboneRef | None = None
    """The newest version that the job registered, if its spec asked for that."""
    backbones: list[BackboneRef] = EMPTY_LIST
    """Every version from its training: those that it registered, and those published from its checkpoints."""
    inspection: Inspection | None = None
    """What a job that inspects a dataset has found."""
    embeddings: Embeddings | None = None
    """What the files of a job that computes features hold; the route of its files has them."""


class JobSummary(View):
    """A job without its spec."""

    id: str
    kind: str
    name: str
    state: State
    reason: str | None
    """Machine-readable cause of the state."""
    message: str
    """The cause in words, with what to do next."""
    owner: str
    priority: int
    labels: dict[str, str]
    notes: str = ""
    progress: AnyProgress | None
    promoted_from: PromotedFrom | None = None
    """The trial from which it was promoted; null for other jobs."""
    follows: str | None = None
    """For an evaluation that the service submitted by itself: the pretraining whose `evaluation.after` asked for it."""
    followed_by: list[str] = EMPTY_LIST
    """The evaluation that followed this job by itself."""
    created_at: datetime
    started_at: datetime | None
    """When its first attempt started training."""
    ended_at: datetime | None
    attempts: int
    run_id: str | None
    """The job's MLflow run."""
    result: Result | None


class JobView(JobSummary):
    """A job."""

    spec: dict[str, Any]
    """The spec with its defaults; once the job was admitted, with values for each `auto` that the cluster decides."""


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
    """The resources that a spec needs, and when it would start."""

    spec: dict[str, Any]
    """The resolved spec; submitting it runs the same job."""
    parameters: Parameters | None
    """Null where there is no network."""
    steps: Steps | None
    """Null until the number of images of the dataset is known."""
    memory_per_worker_bytes: int
    """An estimate."""
    gang: Gang
    """Total resources of all workers."""
    points: int | None = None
    """Number of points of a search's space, each with only the parameters that apply there; null where it is infinite,
    and for jobs that search nothing."""
    fits: Literal["now", "later", "never"]
    """When the job would start if it were submitted now."""
    message: str
    """The explanation of `fits`."""
    warnings: list[Warned] = Field([])
    """What an inspection of the dataset says against the spec."""


class EventView(View):
    id: int
    time: datetime
    state: State
    reason: str | None
    message: str
    actor: str
    """Who caused the event: the owner of a token, or `controller`."""


class AttemptView(View):
    number: int
    submission_id: str
    state: str
    """`submitted`, `running`, `succeeded`, `failed`, `cancelled`, `paused` or `lost`."""
    reason: str | None
    message: str
    workers: int | None = None
    """Number of worker processes."""
    gpus: int | None = None
    """Total number of GPUs."""
    heartbeat_at: datetime | None = None
    """Time of the last heartbeat."""
    started_at: datetime
    ended_at: datetime | None
    checkpoint: str | None
    """Path of its newest committed checkpoint, relative to the run's artifact folder."""


class JobsChanged(View):
    """Data of the event `jobs` of the stream of all jobs."""

    jobs: list[str]
    """Ids of jobs whose state, message or progress has changed."""


class Deletion(View):
    """What deleting a job removes."""

    job_id: str
    run_id: str | None
    """Its MLflow run."""
    artifact_uri: str | None
    """The run's artifact folder, with checkpoints, images and logs."""
    files: int
    """Number of files in that folder and of the backbones."""
    bytes: int
    backbones: list[BackboneRef]
    """Versions that the job registered."""


class ResumeBody(Body):
    resources: dict[str, Annotated[StrictInt, Field(ge=0, le=10_000)] | Literal["auto"]] = Field({})
    """Changes to `resources`, such as `{"workers": 4}`; `auto` takes what the cluster has now."""


class RetryBody(ResumeBody):
    from_scratch: StrictBool = False
    """Start over instead of resuming from the last checkpoint."""


class PatchBody(Patch):
    """Changes to a job; fields that are left out keep their values."""

    priority: Annotated[Priority, Strict()] | None = None
    """Jobs of higher priority start first. It can change until the job has ended."""
    labels: Labels | None = None
    """Replaces all labels of the job."""
    notes: str | None = Field(None, max_length=10_000)
    """Free text."""

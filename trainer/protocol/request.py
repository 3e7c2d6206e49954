"""The request that starts an attempt."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from trainer.protocol.message import Message
from trainer.spec.job import JobSpec

ATTEMPT_VARIABLE: Final = "RCMAE_ATTEMPT"
"""Environment variable that holds an `AttemptRequest` as JSON."""


class Source(Message):
    """A pretraining job, one of whose checkpoints an attempt reads."""

    job_id: str
    run_id: str
    artifact_uri: str
    """Its artifact folder."""
    since_attempt: int = 1
    """Only checkpoints of this attempt or later ones count."""


class VersionSource(Message):
    """A registered version whose files an attempt reads."""

    name: str
    """The backbone's."""
    version: int
    folder: str
    """The folder of its files."""
    trained_by: str
    """The job that trained or imported it."""
    tags: dict[str, str]
    """Its tags, such as those of the checkpoint, its step and its network."""


class AttemptRequest(Message):
    """Everything that an attempt needs to know at its start."""

    job_id: str
    attempt: int
    """1 for the first."""
    run_id: str
    """The job's MLflow run, created before the first attempt; another one only if that was permanently deleted."""
    tracking_uri: str
    artifact_uri: str
    """The job's artifact folder: that of its first run."""
    since_attempt: int = 1
    """Resume from the newest committed checkpoint of this attempt or a later one; its own number means from scratch."""
    request_id: str | None = None
    """The id of the HTTP request that submitted the job, for the logs."""
    dataset_roots: tuple[str, ...] | None = None
    """Folders that datasets must lie in, links followed; None allows any location."""
    stall_limit_s: float | None = None
    """The longest time between two steps of training; None: no limit. The trials of a search watch themselves, and the
    service watches the attempts of other jobs."""
    source: Source | VersionSource | None = None
    """What the attempt reads of another job; required where the spec names a checkpoint or a version, and nowhere
    else."""
    reference_uri: str | None = None
    """Artifact folder of the evaluation that a mean corruption error is relative to."""
    spec: Annotated[JobSpec, Field(discriminator="kind")]
    """The resolved spec."""

    @model_validator(mode="after")
    def _source_fits_kind(self) -> Self:
        if self.spec.reads_source and self.source is None:
            raise ValueError(f"source: is required for this job of kind {self.spec.kind}")
        if self.source is not None and not self.spec.reads_source:
            raise ValueError(f"source: this job of kind {self.spec.kind} has none: leave it out")
        return self

"""What an attempt is told when it starts."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from trainer.protocol.message import Message
from trainer.spec.job import JobSpec
from trainer.spec.publish import PublishSpec

ATTEMPT_VARIABLE: Final = "RCMAE_ATTEMPT"
"""Environment variable that holds an `AttemptRequest` as JSON."""


class Source(Message):
    """The pretraining job whose checkpoint a `publish` job registers."""

    job_id: str
    run_id: str
    artifact_uri: str
    """Its artifact folder."""
    since_attempt: int = 1
    """Checkpoints of this attempt and later ones count."""


class AttemptRequest(Message):
    """Everything an attempt is told at its start."""

    job_id: str
    attempt: int
    """1 for the first."""
    run_id: str
    """The job's MLflow run, made before the first attempt; another one only where that was removed for good."""
    tracking_uri: str
    artifact_uri: str
    """The job's artifact folder: that of its first run."""
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

"""The spec of a job that registers a checkpoint which another job has kept."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from trainer.spec.base import Document, SpecModel
from trainer.spec.export import BackboneName, ExportSpec, Formats, License, Network
from trainer.spec.pretrain import Labels, PositiveInt, Priority, RetrySpec

_FOLDER: Final = re.compile(r"checkpoints/a[1-9][0-9]*/[0-9]{8,}")


class PublishResources(SpecModel):
    """One process on one node; the fields are those of every job's resources."""

    workers: Literal[1] = 1
    """Processes."""
    gpus_per_worker: Literal[0] = 0
    """GPUs; writing files needs none."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores."""


class PublishExport(SpecModel):
    """What to export otherwise than the pretraining job does; null leaves it as there."""

    network: Network | None = None
    """`teacher` or `student`."""
    formats: Formats | None = None
    """The formats, as a pretraining spec names them."""
    license: License | None = None
    """The weights' licence, as a Hugging Face or SPDX identifier."""

    def over(self, trained: ExportSpec) -> ExportSpec:
        """What is exported of a checkpoint whose job says ``trained``."""
        return trained.model_copy(update=self.model_dump(exclude_none=True))


class PublishSpec(Document):
    """Register a kept checkpoint of a pretraining job as a version of a backbone."""

    kind: Literal["publish"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A name for people; by default the backbone's."""
    job: str = Field(min_length=1, max_length=100, examples=["job-7f3k2m"])
    """The pretraining job whose checkpoint it is."""
    checkpoint: str | None = Field(None, examples=["checkpoints/a1/00000100"])
    """The checkpoint's folder below that job's artifacts; null for its newest."""
    register_as: BackboneName
    """Name under which the backbone is registered."""
    export: PublishExport = Field(default_factory=PublishExport)
    """What is registered, and in which formats, where that is other than the pretraining job says."""
    resources: PublishResources = Field(default_factory=PublishResources)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Names and values of your own, to find jobs by."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    @field_validator("checkpoint")
    @classmethod
    def _a_checkpoint_s_folder(cls, folder: str | None) -> str | None:
        if folder is not None and not _FOLDER.fullmatch(folder):
            raise ValueError("write it as the job's list of checkpoints has it, for example checkpoints/a1/00000100")
        return folder

    @field_validator("export", mode="before")
    @classmethod
    def _null_is_nothing_else(cls, export: Any) -> Any:
        return {} if export is None else export

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        name = data.get("register_as")
        return data | {"name": f"publish-{name}"[:200]} if isinstance(name, str) else data

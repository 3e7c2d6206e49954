"""The spec of a job that registers a checkpoint of another job."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from trainer.spec.base import SpecModel
from trainer.spec.common import CpuCores, Labels, Priority, RetrySpec
from trainer.spec.dataset import DatasetSpec
from trainer.spec.export import BackboneName, ExportSpec, FirstVisibility, Formats, License, LicenseLink, Network
from trainer.spec.one_worker import OneWorkerDocument

_FOLDER: Final = re.compile(r"checkpoints/a[1-9][0-9]*/[0-9]{8,}")


def _checkpoint_folder(folder: str) -> str:
    if not _FOLDER.fullmatch(folder):
        raise ValueError("must be a folder from the job's list of checkpoints, for example checkpoints/a1/00000100")
    return folder


CheckpointFolder = Annotated[str, AfterValidator(_checkpoint_folder)]
"""A checkpoint's folder below its job's artifacts."""


class PublishResources(SpecModel):
    """One process on one node; the fields are those of every job's resources."""

    workers: Literal[1] = 1
    """Processes."""
    gpus_per_worker: Literal[0] = 0
    """GPUs: none, since the job only writes files."""
    cpus_per_worker: CpuCores = 1
    """CPU cores."""


class PublishExport(SpecModel):
    """Overrides of the pretraining job's `export`; null keeps its value."""

    network: Network | None = None
    """`teacher` or `student`."""
    formats: Formats | None = None
    """The formats, as a pretraining spec names them."""
    license: License | None = None
    """The weights' licence, as a Hugging Face or SPDX identifier."""
    license_link: LicenseLink | None = None
    """Where the licence's text is."""
    visibility: FirstVisibility | None = None
    """Who sees the backbone of which this is the first version: `all` or its `owners`."""

    def over(self, trained: ExportSpec) -> ExportSpec:
        """The export section for a checkpoint whose own job has ``trained``."""
        changed = self.model_dump(exclude_none=True)
        if self.license and self.license != trained.license:  # the link was to another licence's text
            changed.setdefault("license_link", None)
        return trained.model_copy(update=changed)


class PublishSpec(OneWorkerDocument):
    """Register a kept checkpoint of a pretraining job as a version of a backbone."""

    kind: Literal["publish"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the backbone's."""
    job: str = Field(min_length=1, max_length=100, examples=["job-7f3k2m"])
    """The pretraining job whose checkpoint it is."""
    checkpoint: CheckpointFolder | None = Field(None, examples=["checkpoints/a1/00000100"])
    """The checkpoint's folder below that job's artifacts; null for its newest."""
    register_as: BackboneName
    """Name under which the backbone is registered."""
    export: PublishExport = Field(default_factory=PublishExport)
    """Which network is registered, and in which formats, if not as in the pretraining job."""
    resources: PublishResources = Field(default_factory=PublishResources)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    @property
    def reads_source(self) -> bool:
        """An attempt reads the checkpoint of another job, which its request names."""
        return True

    @property
    def dataset_used(self) -> DatasetSpec | None:
        """None: it reads no images."""
        return None

    @property
    def worker_resources(self) -> PublishResources:
        """The resources of an attempt's only worker."""
        return self.resources

    @field_validator("export", mode="before")
    @classmethod
    def _null_is_empty(cls, export: Any) -> Any:
        return {} if export is None else export

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        name = data.get("register_as")
        return data | {"name": f"publish-{name}"[:200]} if isinstance(name, str) else data

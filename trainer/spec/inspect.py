"""The spec of a job that inspects a dataset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.spec.base import SpecModel
from trainer.spec.common import CpuCores, Labels, Priority, RetrySpec
from trainer.spec.dataset import DatasetSpec
from trainer.spec.one_worker import OneWorkerDocument


class InspectResources(SpecModel):
    """One process on one node; the fields are those of every job's resources."""

    workers: Literal[1] = 1
    """Processes."""
    gpus_per_worker: Literal[0] = 0
    """GPUs: none, since the job only decodes images."""
    cpus_per_worker: CpuCores = 1
    """CPU cores, each of which decodes images."""


class InspectSpec(OneWorkerDocument):
    """Find out what a dataset holds and what training would make of it, on the node that would read it."""

    kind: Literal["inspect"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the dataset's."""
    dataset: DatasetSpec
    sample: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Images to decode, chosen by a hash of their names; null: all, which training then need not decode again."""
    resources: InspectResources = Field(default_factory=InspectResources)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    @property
    def dataset_used(self) -> DatasetSpec:
        """The dataset whose images are read."""
        return self.dataset

    @property
    def worker_resources(self) -> InspectResources:
        """The resources of an attempt's only worker."""
        return self.resources

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        dataset = data.get("dataset")
        uri = dataset.get("uri") if isinstance(dataset, dict) else None
        return data | {"name": f"inspect-{uri.rstrip('/').rpartition('/')[2]}"[:200]} if isinstance(uri, str) else data

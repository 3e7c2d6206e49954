"""The spec of a job that computes the features of a dataset's images."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.spec.base import Document, refuse
from trainer.spec.cluster import ClusterShape
from trainer.spec.common import Auto, Labels, Priority, RetrySpec
from trainer.spec.dataset import DatasetSpec
from trainer.spec.evaluate import FeaturesSpec
from trainer.spec.resources import ResourcesSpec
from trainer.spec.subject import SubjectRef, WeightsRef, subject_name

ROWS_PER_FILE: Final = 8192
"""About 30 MB of a ViT-B's features."""
ROWS_WITH_PATCHES: Final = 512
"""About 150 MB of a ViT-B's patch tokens at 224 pixels: a file is put together in memory."""


class EmbedSpec(Document):
    """Compute a backbone's features of images, and leave them as Parquet files that any tool reads."""

    kind: Literal["embed"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the backbone's."""
    backbone: SubjectRef
    """What computes the features: `NAME`, `NAME:3` or `NAME@alias` of a registered backbone (the version that it means
    at the submission), `{job: JOB, checkpoint: …}`, or `{uri: …}` of weights from elsewhere."""
    dataset: DatasetSpec
    """The images. They need no labels."""
    features: FeaturesSpec = Field(default_factory=FeaturesSpec)
    """What of the network's output is kept; of one block."""
    patch_tokens: bool = False
    """Keep the tokens of all patches too, as float16: 150 KB for each image of 224 pixels with a ViT-S of patch 16."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the features in the files. The network computes in `features.precision`."""
    rows_per_file: Annotated[int, Field(ge=1, le=1_000_000)] | Auto = "auto"
    """Images in each file but the last. `auto`: 8192, or 512 with patch tokens. A worker holds one file in memory."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    @property
    def file_rows(self) -> int:
        """Images in each file but the last."""
        if self.rows_per_file != "auto":
            return self.rows_per_file
        return ROWS_WITH_PATCHES if self.patch_tokens else ROWS_PER_FILE

    @property
    def dataset_used(self) -> DatasetSpec:
        """The dataset whose images are read."""
        return self.dataset

    @property
    def worker_resources(self) -> ResourcesSpec:
        """The resources of an attempt's workers."""
        return self.resources

    @property
    def concurrent_runs(self) -> int:
        """One attempt goes over the images once."""
        return 1

    @property
    def reads_source(self) -> bool:
        """Whether an attempt reads a version, or a checkpoint of another job, so that its request says where it is."""
        return not isinstance(self.backbone, WeightsRef)

    def resolved_sections(self, cluster: ClusterShape) -> dict[str, Any]:
        """The sections in which `trainer.spec.plan.resolve` fills in `auto` values."""
        return {"resources": self.resources.settled(cluster, None)}

    @model_validator(mode="after")
    def _one_layer(self) -> Self:
        if self.features.layer == "all":
            raise refuse("features.layer", "name one block, or last: the files hold the features of one", "all")
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        subject = subject_name(data.get("backbone"))
        return data | {"name": f"embed-{subject}"[:200]} if subject else data

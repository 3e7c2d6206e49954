"""The spec of a job that registers weights from elsewhere as a version of a backbone."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from trainer.spec.base import SpecModel, refuse
from trainer.spec.common import CpuCores, Labels, Priority, RetrySpec
from trainer.spec.dataset import DatasetSpec, location
from trainer.spec.export import BackboneName, FirstVisibility, Formats, License, LicenseLink, Network
from trainer.spec.one_worker import OneWorkerDocument

LINKED: Final = "other"
"""The licence that says nothing unless a link leads to its text."""
HUB: Final = "huggingface.co"
NO_OWNERS: Final = frozenset({
    "datasets", "spaces", "papers", "docs", "collections", "blog", "models", "api", "learn",
})  # fmt: skip
"""First parts of the Hub's addresses that lead to no model."""
_REPOSITORY: Final = re.compile(r"/(\w[\w.-]*)/(\w[\w.-]*)(?:/|$)", re.ASCII)
FENCE: Final = "```"


def _one_line(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("write one line of printable characters, without spaces at its ends")
    return text


def _quotable(text: str) -> str:
    if FENCE in text or not text.strip():
        raise ValueError(f"write text, such as a BibTeX entry, without {FENCE}: the model card quotes it")
    return text


Line = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]
Quotation = Annotated[str, Field(max_length=4000), AfterValidator(_quotable)]


class SourceSpec(SpecModel):
    """Where the weights are."""

    uri: str = Field(max_length=1000, examples=["s3://models/vit-mae-base", "/data/models/mae_pretrain_vit_base.pth"])
    """A folder as timm or transformers save a Vision Transformer, or one file of weights (`.pth`, `.safetensors`): an
    absolute path, `file:///path` or `s3://bucket/path` that the workers can read. Where a service restricts the
    locations of datasets, weights must be in them too."""
    num_heads: Annotated[int, Field(ge=1, le=2**14)] | None = None
    """Attention heads of the encoder, for weights that do not say; null: what the source says, or what the paper's
    networks of the same width have."""
    decoder_num_heads: Annotated[int, Field(ge=1, le=2**14)] | None = None
    """The same of the decoder."""

    @field_validator("uri")
    @classmethod
    def _readable(cls, uri: str) -> str:
        advice = (
            "give /path, file:///path or s3://bucket/path. What is on another server, or on your own machine, must "
            "first be copied to where the workers can read it"
        )
        if "*" in uri:
            raise ValueError("must name one folder or file: patterns do not work here")
        return location(uri, advice, ("/data/models/vit", "models/vit"))


class OriginSpec(SpecModel):
    """Who made the weights, and what they say of them: the model card quotes it."""

    name: Line = Field(examples=["facebook/vit-mae-base"])
    """What its makers call it."""
    url: LicenseLink | None = Field(None, examples=["https://huggingface.co/facebook/vit-mae-base"])
    """Where its makers publish it."""
    trained_on: Line | None = Field(None, examples=["ImageNet-1k"])
    """What it was trained on, as its makers say."""
    paper: LicenseLink | None = Field(None, examples=["https://arxiv.org/abs/2111.06377"])
    """The paper about it."""
    citation: Quotation | None = None
    """How its makers want to be cited, for example in BibTeX."""

    @property
    def hub_id(self) -> str | None:
        """The repository's name in the Hugging Face Hub; None if it is published elsewhere."""
        address = urlsplit(self.url or "")
        found = _REPOSITORY.match(address.path)
        if address.hostname != HUB or found is None or found[1] in NO_OWNERS:
            return None
        return f"{found[1]}/{found[2]}"


class ImportExport(SpecModel):
    """Which network is registered, in which formats, and who sees it."""

    network: Network | None = None
    """`teacher` or `student`, where the weights hold both; null: the teacher there, and otherwise the only one."""
    formats: Formats | None = None
    """As a pretraining spec names them. Null: all that the network allows: `hf-mae` needs a decoder and square
    images."""
    visibility: FirstVisibility = "all"
    """Who sees the backbone of which this is the first version: `all` or its `owners`."""


class ImportResources(SpecModel):
    """One process on one node; the fields are those of every job's resources."""

    workers: Literal[1] = 1
    """Processes."""
    gpus_per_worker: Literal[0] = 0
    """GPUs: none, since the job computes a few images only."""
    cpus_per_worker: CpuCores = 1
    """CPU cores."""


class ImportSpec(OneWorkerDocument):
    """Register weights from elsewhere as a version of a backbone."""

    kind: Literal["import"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the backbone's."""
    source: SourceSpec
    register_as: BackboneName
    """Name under which the backbone is registered."""
    origin: OriginSpec
    license: License = Field(examples=["apache-2.0", "cc-by-nc-4.0", "unknown"])
    """The licence that its makers gave the weights, as a Hugging Face or SPDX identifier; `unknown` if nobody knows, or
    `other` with `license_link`."""
    license_link: LicenseLink | None = None
    """Where the licence's text is; needed for `other`."""
    export: ImportExport = Field(default_factory=ImportExport)
    resources: ImportResources = Field(default_factory=ImportResources)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    @property
    def dataset_used(self) -> DatasetSpec | None:
        """None: it reads no images."""
        return None

    @property
    def worker_resources(self) -> ImportResources:
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
        return data | {"name": f"import-{name}"[:200]} if isinstance(name, str) else data

    @model_validator(mode="after")
    def _other_licences_are_linked(self) -> Self:
        if self.license.lower() == LINKED and self.license_link is None:
            text = "is needed for the licence other: give the https:// address of the licence's text"
            raise refuse("license_link", text)
        return self

"""What the backbones' routes take and give. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from pydantic import Field, StrictInt

from service.http.schemas import Body, View

CHAMPION: Final = "champion"
"""The alias that `main` stands for, where a backbone has it."""
MAIN: Final = "main"
LATEST: Final = "latest"
LARGEST: Final = 2**31 - 1
"""The largest number of a version that there can be."""


class FileView(View):
    path: str
    """Below the version's folder, for example `hf/model.safetensors`."""
    size: int
    """Bytes."""
    sha256: str
    url: str
    """Where the file is, below the server's address."""


class VersionSummaryView(View):
    """A registered version of a backbone."""

    name: str
    version: int
    created_at: datetime
    job_id: str
    """The job that registered it."""
    trained_by: str = ""
    """The job that pretrained it: another than `job_id` where somebody published one of its checkpoints."""
    attempt: int | None = None
    """The attempt of `job_id` that registered it."""
    checkpoint_step: int | None = None
    """The optimiser step of the checkpoint that it was made of."""
    method: str | None = None
    epochs: float | None = None
    """That its weights have had."""
    dataset_fingerprint: str | None = None
    network: str | None = None
    """`teacher` or `student`."""
    code_version: str | None = None
    """Of the trainer."""
    formats: list[str] = Field(default_factory=list)
    """Its folders that can be pulled, for example `hf` and `timm`."""
    aliases: list[str] = Field(default_factory=list)
    """Names that stand for this version now."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Results of evaluation, by metric key."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Everything that the registry notes of it."""


class VersionView(VersionSummaryView):
    """A registered version with its files."""

    commit: str = ""
    """40 hexadecimal digits that name exactly these files: a revision for `/hf`."""
    files: list[FileView]


class BackboneView(View):
    """A backbone: all that was registered under one name."""

    name: str
    latest_version: int
    main_version: int = 0
    """The one with the alias `champion`, else the latest: what is pulled where no version is named."""
    versions: list[int]
    aliases: dict[str, int] = Field(default_factory=dict)
    """What each alias stands for."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Results of evaluation of `main_version`."""
    formats: list[str] = Field(default_factory=list)
    """Of `main_version`, that can be pulled."""
    updated_at: datetime
    """When the latest version was registered."""


class BackboneDetailView(BackboneView):
    """A backbone with what is known of each of its versions."""

    details: list[VersionSummaryView] = Field(default_factory=list)
    """Newest first."""


class VersionDeletionView(View):
    """What goes with a version that is deleted."""

    name: str
    version: int
    job_id: str
    artifact_uri: str
    """The folder of its files."""
    files: int
    bytes: int
    aliases: list[str]
    """Names that stand for it: while there are any, it is not deleted."""


class AliasBody(Body):
    """What an alias stands for."""

    version: Annotated[StrictInt, Field(ge=1, le=LARGEST)]
    """The number of the version."""

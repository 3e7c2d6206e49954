"""Request and response models of backbones. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Final, Literal

from pydantic import Field, StrictInt

from service.backbones.approval_schemas import ChampionRuleView, Reason
from service.backbones.use_schemas import VersionUserView
from service.http.schemas import Body, Owner, Patch, View
from service.jobs.evaluation_schemas import VersionResultView
from trainer.protocol import names
from trainer.spec.common import Labels

CHAMPION: Final = names.CHAMPION
"""The alias that `main` means, if a backbone has it."""
MAIN: Final = "main"
LATEST: Final = "latest"
LARGEST: Final = 2**31 - 1
"""The largest possible version number."""
MOST_READERS: Final = 100
"""Of one backbone."""
Visibility = Literal["all", "owners", "readers"]
"""Who sees a backbone: `service.auth.sight` decides by it."""
VersionType = Literal["backbone", "classifier"]


class FileView(View):
    path: str
    """Path in the version's folder, for example `hf/model.safetensors`."""
    size: int
    """Bytes."""
    sha256: str
    url: str
    """The file's path on this server."""


class VersionSummaryView(View):
    """A registered version of a backbone."""

    name: str
    version: int
    state: Literal["ready", "gone"] = "ready"
    """`gone`: somebody has deleted it in MLflow, so it cannot be pulled."""
    created_at: datetime
    owner: str = ""
    """The owner of the job that registered it."""
    description: str = ""
    """Free text; at first the notes of its job."""
    labels: dict[str, str] = Field(default_factory=dict)
    """At first those of its job."""
    job_id: str
    """The job that registered it."""
    trained_by: str = ""
    """The job that pretrained it, or imported it. It differs from `job_id` if somebody published one of its
    checkpoints."""
    attempt: int | None = None
    """The attempt of `job_id` that registered it."""
    checkpoint_step: int | None = None
    """The optimiser step of the exported checkpoint."""
    type: VersionType = "backbone"
    """`classifier`: a backbone that was fine-tuned with a head, by a job of kind `evaluate`. A name has either."""
    classes: list[str] = Field(default_factory=list)
    """Those of a classifier, in the order of its logits; empty where the names are too many for a tag: its
    configuration has them all."""
    fine_tuned_from: str | None = None
    """Of a classifier: `NAME:VERSION` of its backbone, or the title of other weights."""
    method: str | None = None
    """`imported`: others have trained it, elsewhere; `finetune`: it is a classifier."""
    origin: str | None = None
    """What its makers call it, if it was imported."""
    origin_url: str | None = None
    """Where its makers publish it."""
    license: str | None = None
    """The weights' licence, if somebody named it."""
    epochs: float | None = None
    """Epochs that its weights were trained for."""
    dataset_fingerprint: str | None = None
    network: str | None = None
    """`teacher` or `student`."""
    code_version: str | None = None
    """Version of the trainer's code."""
    formats: list[str] = Field(default_factory=list)
    """Formats in which it can be pulled, for example `hf` and `timm`."""
    aliases: list[str] = Field(default_factory=list)
    """Aliases that point at this version now."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Evaluation results, by metric key."""
    expires_at: datetime | None = None
    """When its backbone's retention rule deletes it, unless somebody uses it or gives it an alias here; null: not by
    itself."""
    downloads: int = 0
    """Days on which a token downloaded weights of it, added up over all tokens."""
    last_used_on: date | None = None
    """The last day on which anybody downloaded weights, or asked for a file as clients with a cache do, in UTC. None:
    nobody has, since downloads are counted."""
    bytes: int | None = None
    """Of all its files; None until the controller has added them up."""
    tags: dict[str, str] = Field(default_factory=dict)
    """All its tags in MLflow, but for the copies of its labels and of what evaluations have found."""


class SignatureView(View):
    """That a version's checksums are signed."""

    key_id: str
    """The key, which `/v1/signing-keys` lists."""
    signed_at: datetime
    """When the service read the checksums and signed them."""
    intact: bool
    """Whether the checksums are those that were signed. If not, somebody has changed the version's files since."""


class VersionView(VersionSummaryView):
    """A registered version with its files."""

    commit: str = ""
    """40 hexadecimal digits that identify exactly these files; a valid revision for `/hf`."""
    signature: SignatureView | None = None
    """None: it is not signed."""
    evaluations: list[VersionResultView] = Field(default_factory=list)
    """The newest result of its evaluations by each measurement: `metrics` has those of its training, which stay."""
    files: list[FileView]


class BackboneView(View):
    """A backbone: all versions registered under one name."""

    name: str
    type: VersionType = "backbone"
    """That of all its versions."""
    owner: str = ""
    """Whoever registered its first version, or was given it later."""
    description: str = ""
    """Free text."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Its own; each version has further ones."""
    visibility: Visibility = "all"
    """Who sees it, with all its versions, besides operators and admins: `all`; `owners`, its own and those of its
    versions; or `readers`, the owners and the people in `readers`. It keeps nobody out who can reach MLflow, the
    artifact storage or a backup."""
    readers: list[str] = Field(default_factory=list)
    """Those who see it although they own no part of it."""
    latest_version: int
    """The newest version that can be pulled; if there is none, the newest."""
    main_version: int = 0
    """The version with the alias `champion`, otherwise the latest: it is pulled if no version is named."""
    versions: list[int]
    """Those that can be pulled."""
    gone: list[int] = Field(default_factory=list)
    """Versions that somebody has deleted in MLflow: they cannot be pulled."""
    aliases: dict[str, int] = Field(default_factory=dict)
    """The version that each alias points at."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Evaluation results of `main_version`."""
    formats: list[str] = Field(default_factory=list)
    """Formats in which `main_version` can be pulled."""
    downloads: int = 0
    """Those of all its versions."""
    last_used_on: date | None = None
    """The last day on which one of them was used."""
    bytes: int | None = None
    """Of all files of its versions, as far as their sizes are known."""
    updated_at: datetime
    """When the latest version was registered."""


class FineTunedView(View):
    """A classifier that was fine-tuned from a version of a backbone."""

    name: str
    version: int
    fine_tuned_from: str
    """`NAME:VERSION`."""


class BackboneDetailView(BackboneView):
    """A backbone with the details of each version."""

    classifiers: list[FineTunedView] = Field(default_factory=list)
    """Those that were fine-tuned from its versions and that you see."""

    details: list[VersionSummaryView] = Field(default_factory=list)
    """Newest first."""
    champion_rule: ChampionRuleView | None = None
    """What a version must meet to become the champion; null if there is no rule."""


class VersionDeletionView(View):
    """What is removed with a deleted version."""

    name: str
    version: int
    job_id: str
    artifact_uri: str
    """The version's folder."""
    files: int
    bytes: int
    used_by: list[VersionUserView] = Field(default_factory=list)
    """Who has used it, whoever did last first."""
    aliases: list[str]
    """Aliases that point at it: while there are any, it cannot be deleted."""
    kept: str = ""
    """Why it cannot be deleted now, and what to do first; empty if it can."""


class VersionPatch(Patch):
    """Changes to a version; fields that are left out keep their values."""

    description: str | None = Field(None, max_length=names.DESCRIPTION_LENGTH)
    """Free text."""
    labels: Labels | None = None
    """Replaces all labels of the version."""


class BackbonePatch(Patch):
    """Changes to a backbone; fields that are left out keep their values."""

    description: str | None = Field(None, max_length=names.DESCRIPTION_LENGTH)
    """Free text."""
    labels: Labels | None = None
    """Replaces all labels of the backbone; those of its versions stay."""
    owner: Owner | None = None
    """Gives it to somebody who has a token. The versions keep their own owners."""
    visibility: Visibility | None = None
    """Who sees it, as `BackboneView` tells; `readers` needs readers."""
    readers: Annotated[list[Owner], Field(max_length=MOST_READERS)] | None = None
    """Replaces those who see it by name: people who have a token. They need the visibility `readers`."""


class AliasBody(Body):
    """The new target of an alias."""

    version: Annotated[StrictInt, Field(ge=1, le=LARGEST)]
    """The version number."""
    reason: Reason = ""
    """Why it moves, which the alias's history keeps."""

"""Tables of backbones, their versions, aliases with their history, signatures, uses and retention rules."""

from __future__ import annotations

import unicodedata
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    Text,
    event,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables.base import Base, now
from trainer.protocol import names


class RegisteredBackbone(Base):
    """What all versions of a backbone have in common. The row is there as long as one of them is shown."""

    __tablename__ = "backbone"

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    """Whoever registered its first version, or was given it later."""
    description: Mapped[str | None] = mapped_column(Text)
    """None until somebody has described it here or in MLflow; empty if somebody has removed the description."""
    labels: Mapped[dict[str, str]] = mapped_column(default=dict, server_default="{}")
    visibility: Mapped[str] = mapped_column(String(16), default="all", server_default="all")
    """Who sees it and its versions, besides its owners: see `service.auth.sight`."""
    search_text: Mapped[str] = mapped_column(Text, server_default="")
    """Its description and labels, for searches; see `folded`."""
    champion_rule: Mapped[dict[str, Any] | None]
    """A `service.backbones.approval_schemas.ChampionRuleView`; None if it has no rule."""
    created_at: Mapped[datetime]
    """When its first version was registered."""


class BackboneReader(Base):
    """Somebody who sees a private backbone without owning it or one of its versions."""

    __tablename__ = "backbone_reader"

    name: Mapped[str] = mapped_column(ForeignKey("backbone.name", ondelete="CASCADE"), primary_key=True)
    reader: Mapped[str] = mapped_column(String(100), primary_key=True)
    """The owner of tokens."""


class BackboneVersion(Base):
    """A registered version of a backbone. MLflow has it too, and gave it its number."""

    __tablename__ = "backbone_version"
    __table_args__ = (Index(None, "job_id"), Index(None, "state", "deleted_at"))

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    """A `service.jobs.versions.VersionState`."""
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    """The job that registered it."""
    owner: Mapped[str] = mapped_column(String(100))
    """That job's owner."""
    trained_by: Mapped[str] = mapped_column(String(32))
    """The job that pretrained it."""
    dataset_uri: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    """Its source in MLflow, which tells it from another version that has the same number."""
    folder: Mapped[str | None] = mapped_column(Text)
    """The folder of its files; None if MLflow has no logged model for it."""
    tags: Mapped[dict[str, str]]
    """Its tags in MLflow, but for the copies of its labels and of what evaluations have found."""
    description: Mapped[str | None] = mapped_column(Text)
    """As `RegisteredBackbone.description`; at first the notes of its job."""
    labels: Mapped[dict[str, str]] = mapped_column(default=dict, server_default="{}")
    """At first those of its job."""
    search_text: Mapped[str] = mapped_column(Text, server_default="")
    """Its name, dataset, description and labels, for searches; see `folded`."""
    created_at: Mapped[datetime]
    """When it was registered."""
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of all files of its folder; None until the controller has added them up."""
    counted_since: Mapped[datetime] = mapped_column(default=now, server_default=FetchedValue())
    """Since when its downloads are counted: from when its row was made, since MLflow has it again, or since a backup
    was restored. The database's own default is the upgrade that brought the counting."""
    unnamed_at: Mapped[datetime | None]
    """When an alias last left it."""
    expires_at: Mapped[datetime | None]
    """When its backbone's retention rule deletes it unless somebody downloads or names it; None: not by itself."""
    unneeded_since: Mapped[datetime | None]
    """When it was first found that nothing keeps it by that rule; None if something does."""

    def begin_anew(self) -> None:
        """Withdraw what was announced: somebody needs it, so a retention rule must announce its end anew."""
        self.expires_at = self.unneeded_since = None

    downloads: Mapped[int] = mapped_column(default=0, server_default="0")
    """Days on which a token downloaded weights of it, added up over all tokens: `VersionUse` without the formats."""
    last_used_on: Mapped[date | None]
    """The last day on which anybody did, or asked for a file as clients with a cache do; None if nobody has."""
    deleted_at: Mapped[datetime | None]
    """When it was deleted here."""


def folded(text: str) -> str:
    """A text as searches compare it: neither case nor the encoding of accents matters, in either kind of database."""
    return unicodedata.normalize("NFC", text).casefold()


@event.listens_for(RegisteredBackbone, "before_insert")
@event.listens_for(RegisteredBackbone, "before_update")
def _write_backbone_text(_: object, __: Connection, row: RegisteredBackbone) -> None:
    row.search_text = _search_text(row)


@event.listens_for(BackboneVersion, "before_insert")
@event.listens_for(BackboneVersion, "before_update")
def _write_version_text(_: object, __: Connection, row: BackboneVersion) -> None:
    origin = row.tags.get(names.TAG_ORIGIN)
    known = "\n".join(filter(None, (row.name, row.dataset_uri, origin)))
    row.search_text = folded(f"{known}\n") + _search_text(row)


def _search_text(row: RegisteredBackbone | BackboneVersion) -> str:
    labels = (f"{name}:{value}" for name, value in (row.labels or {}).items())
    return folded("\n".join([row.description or "", *labels]))


class BackboneAlias(Base):
    """A name for a version of a backbone. MLflow has a copy."""

    __tablename__ = "backbone_alias"
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["backbone_version.name", "backbone_version.version"], ondelete="CASCADE"
        ),
    )

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    alias: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int]


class AliasMove(Base):
    """That an alias was set, moved or removed. It stays when the versions go, until the backbone's last one does."""

    __tablename__ = "alias_move"
    __table_args__ = (Index(None, "name", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(ForeignKey("backbone.name", ondelete="CASCADE"))
    """The backbone."""
    alias: Mapped[str] = mapped_column(String(256))
    version: Mapped[int | None]
    """The version that it points at now; None if it was removed."""
    source: Mapped[str | None] = mapped_column(Text)
    """That version's source, as `BackboneVersion.source`."""
    metrics: Mapped[dict[str, Any] | None]
    """That version's results then, by metric key."""
    before: Mapped[int | None]
    """The version that it pointed at before; None if there was no such alias."""
    actor: Mapped[str | None] = mapped_column(String(100))
    """The owner of the token; None if nobody did it here: it was set in MLflow, or went with its version."""
    token_id: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text, default="")
    moved_at: Mapped[datetime] = mapped_column(default=now)


class SigningKey(Base):
    """A public key of the deployment. It stays after the service signs with another one, for what it has signed."""

    __tablename__ = "signing_key"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The first 16 hexadecimal digits of the sha256 of the key in DER."""
    public_key: Mapped[str] = mapped_column(Text)
    """In PEM."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    """When the service first had it."""


class VersionSignature(Base):
    """The signature over a version's checksums. It stays as it is, whatever happens to the files."""

    __tablename__ = "version_signature"
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["backbone_version.name", "backbone_version.version"], ondelete="CASCADE"
        ),
    )

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_key.id"))
    signature: Mapped[str] = mapped_column(String(88))
    """The 64 bytes of Ed25519 in base64."""
    sums_sha256: Mapped[str] = mapped_column(String(64))
    """Of the checksum file that was signed."""
    signed_at: Mapped[datetime] = mapped_column(default=now)


class VersionUse(Base):
    """That a token used a version on a day. It stays when the token is revoked."""

    __tablename__ = "version_use"
    __table_args__ = (
        Index(None, "day"),
        ForeignKeyConstraint(
            ["name", "version"], ["backbone_version.name", "backbone_version.version"], ondelete="CASCADE"
        ),
    )

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(primary_key=True)
    """In UTC."""
    token_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    export_format: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The format that was downloaded or asked for; empty for an archive of all formats."""
    downloaded: Mapped[bool]
    """Whether it got weights. Otherwise it only asked for a file: the first that a token asks for on a day is here."""


class RetentionRule(Base):
    """The rule by which versions of a backbone are deleted. It goes with the backbone's row."""

    __tablename__ = "retention_rule"

    name: Mapped[str] = mapped_column(String(256), ForeignKey("backbone.name", ondelete="CASCADE"), primary_key=True)
    expire_unused_days: Mapped[int]
    keep_newest: Mapped[int]
    set_by: Mapped[str] = mapped_column(String(100))
    set_at: Mapped[datetime] = mapped_column(default=now)
    decided_at: Mapped[datetime] = mapped_column(default=now)
    """When it was last decided what it does with each version, give or take `retention.NOTED_EVERY`."""

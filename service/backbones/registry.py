"""Which versions are shown and served, and their details.

They are rows of our database, which only versions of our jobs get: anybody who can reach MLflow can register anything
there. Files are served only from below the artifact root. Every read takes the caller: backbones that the caller does
not see are read as if they did not exist.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, cast

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from service.adapters.storage import OutsideRoot, StoredFile
from service.auth.caller import Caller
from service.auth.sight import READERS
from service.backbones import space
from service.backbones.schemas import (
    CHAMPION,
    LARGEST,
    LATEST,
    MAIN,
    BackboneView,
    VersionSummaryView,
    VersionType,
    Visibility,
)
from service.backbones.signature_schemas import SIGNATURE_FILE
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, RegisteredBackbone
from service.http.problems import ApiProblem, not_found
from service.jobs import aliases, version_tags, versions, visibility
from service.jobs.registering import type_of
from service.jobs.versions import VersionState
from trainer.protocol import names
from trainer.spec import formats

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
RESERVED: Final = re.compile(rf"{MAIN}|{LATEST}|v[0-9]+|{COMMIT.pattern}")
"""Names that match `ALIAS` but have another meaning."""
MOST_AT_ONCE: Final = 1000
"""Backbones that one transaction reads for a list."""
NUMBER: Final = re.compile(rf"v?([0-9]{{1,{len(str(LARGEST))}}})")
SUMS_LINE: Final = re.compile(r"([0-9a-f]{64})  (.+)")

COMMITS: Final[dict[str, str]] = {}
"""Cache of the versions' commits, by version folder."""
COMMITS_KEPT: Final = 10_000
"""Largest size of that cache."""


@dataclass(frozen=True)
class Served:
    """A version that is shown. Its files are served unless it is gone."""

    row: BackboneVersion
    folder: str
    """The folder of its files."""

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def number(self) -> int:
        return self.row.version

    @property
    def gone(self) -> bool:
        """Whether somebody has deleted it in MLflow."""
        return self.row.state == VersionState.GONE

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Evaluation results, by metric key; values that are not finite numbers are left out."""
        return version_tags.metrics_of(self.row.tags)

    @property
    def formats(self) -> list[str]:
        """The formats in which it can be pulled; empty for old versions, which have no tag for them."""
        return [] if self.gone else version_tags.formats_of(self.row.tags)

    @property
    def type(self) -> VersionType:
        return "classifier" if type_of(self.row.tags) == names.CLASSIFIER else "backbone"

    def summary(self, aliases: Mapping[str, int]) -> VersionSummaryView:
        """The version as the API shows it; ``aliases`` are all aliases of the backbone."""
        tags = self.row.tags
        return VersionSummaryView(
            name=self.name,
            version=self.number,
            state="gone" if self.gone else "ready",
            created_at=self.row.created_at,
            owner=self.row.owner,
            description=self.row.description or "",
            labels=self.row.labels,
            job_id=self.row.job_id,
            trained_by=self.row.trained_by,
            attempt=_whole(tags.get(names.TAG_ATTEMPT)),
            checkpoint_step=_whole(tags.get(names.TAG_STEP)),
            type=self.type,
            classes=version_tags.classes_of(tags),
            fine_tuned_from=tags.get(names.TAG_FINE_TUNED_FROM),
            method=tags.get(names.TAG_METHOD),
            origin=tags.get(names.TAG_ORIGIN),
            origin_url=tags.get(names.TAG_ORIGIN_URL),
            license=tags.get(names.TAG_LICENSE),
            epochs=version_tags.finite(tags.get(names.TAG_EPOCHS)),
            dataset_fingerprint=tags.get(names.TAG_DATASET),
            network=tags.get(names.TAG_NETWORK),
            code_version=tags.get(names.TAG_CODE),
            formats=self.formats,
            aliases=sorted(alias for alias, number in aliases.items() if number == self.number),
            metrics=self.metrics,
            expires_at=self.row.expires_at,
            downloads=self.row.downloads,
            last_used_on=self.row.last_used_on,
            bytes=self.row.bytes,
            tags=dict(tags),
        )


@dataclass(frozen=True)
class Backbone:
    """All versions of a backbone that are shown, or some of them, with their aliases."""

    versions: Sequence[Served]
    """By number; at least one."""
    aliases: Mapping[str, int]
    """The aliases that point at these versions, sorted."""
    row: RegisteredBackbone
    readers: Sequence[str] = ()
    """Those whom a private backbone names, sorted."""

    @property
    def name(self) -> str:
        return self.versions[0].name

    @property
    def latest(self) -> Served:
        """The newest version that can be pulled; if there is none, the newest."""
        return next((version for version in reversed(self.versions) if not version.gone), self.versions[-1])

    @property
    def main(self) -> Served:
        """The champion, otherwise the latest version. A champion that is gone is not replaced by other weights."""
        return self.numbered(self.aliases.get(CHAMPION)) or self.latest

    def numbered(self, number: int | None) -> Served | None:
        """The version with a number, if there is one."""
        return next((version for version in self.versions if version.number == number), None)

    def meant_by(self, reference: str, commit_of: Callable[[Served], str]) -> Served | None:
        """The version that a number such as `3` or `v3`, `latest`, `main`, an alias or a commit means, if there is one.

        ``commit_of`` gives a version's commit; a commit means the newest version that has it.
        """
        if number := NUMBER.fullmatch(reference):
            return self.numbered(int(number[1]))
        if reference in {LATEST, MAIN}:
            return self.latest if reference == LATEST else self.main
        if COMMIT.fullmatch(reference):
            ready = (version for version in reversed(self.versions) if not version.gone)
            return next((version for version in ready if commit_of(version) == reference), None)
        return self.numbered(self.aliases.get(reference))

    def only(self, versions: Sequence[Served]) -> Backbone:
        """The same backbone with some of its versions."""
        return replace(self, versions=versions, aliases=_among(self.aliases, versions))

    def view(self) -> BackboneView:
        """The backbone as the API shows it."""
        main = self.main
        totals = space.totals([version.row for version in self.versions])
        return BackboneView(
            name=self.name,
            type=main.type,
            owner=self.row.owner,
            description=self.row.description or "",
            labels=self.row.labels,
            visibility=cast(Visibility, self.row.visibility),
            readers=list(self.readers),
            latest_version=self.latest.number,
            main_version=main.number,
            versions=[version.number for version in self.versions if not version.gone],
            gone=[version.number for version in self.versions if version.gone],
            aliases=dict(self.aliases),
            metrics=main.metrics,
            formats=main.formats,
            downloads=totals.downloads,
            last_used_on=totals.last_used_on,
            bytes=totals.bytes,
            updated_at=self.latest.row.created_at,
        )


def backbones(
    state: AppState,
    caller: Caller,
    contains: str,
    after: str,
    at_first: int,
    conditions: Sequence[ColumnElement[bool]] = (),
) -> Iterator[Backbone]:
    """Those of a caller's backbones whose names contain a text and come after another name, by name, read as needed.

    ``at_first``: how many the caller needs at first; ``conditions``: as of `visibility.shown_backbones`. Raises the
    API's 503 while MLflow's versions are being read.
    """
    size = at_first
    while True:
        with state.database.read() as session:
            versions.must_be_read(session)
            found = visibility.shown_backbones(session, caller, contains, after, size, conditions)
            chunk = _read(state, session, versions.backbones(session, found))
        yield from chunk
        if len(found) < size:
            return
        after, size = found[-1], min(2 * size, MOST_AT_ONCE)


def named(state: AppState, caller: Caller, name: str) -> Backbone | None:
    """The backbone with a name, if there is one that a caller sees. Raises the API's 503 while MLflow's versions are
    being read.
    """
    with state.database.read() as session:
        versions.must_be_read(session)
        return next(iter(_read(state, session, visibility.seen_backbones(session, caller, [name]))), None)


def backbone(state: AppState, caller: Caller, name: str) -> Backbone:
    """One backbone. Raises the API's 404 and 503."""
    found = named(state, caller, name)
    if found is None:
        raise not_found("backbone", name)
    return found


def again(state: AppState, backbone: Backbone) -> Backbone:
    """A backbone as it is now, for a caller who saw it before changing it: whoever gives it away may see it no more.

    Raises the API's 404.
    """
    with state.database.read() as session:
        found = next(iter(_read(state, session, versions.backbones(session, [backbone.name]))), None)
    if found is None:
        raise not_found("backbone", backbone.name)
    return found


def _read(state: AppState, session: Session, common: Mapping[str, RegisteredBackbone]) -> list[Backbone]:
    """Those of some backbones, given by name, of which a version is shown."""
    rows, named = versions.shown(session, list(common)), aliases.of_backbones(session, list(common))
    readers = visibility.readers(session, [name for name, row in common.items() if row.visibility == READERS])
    by_name: dict[str, list[Served]] = {}
    for row in rows:
        if row.folder is not None and state.artifacts.holds(row.folder):
            by_name.setdefault(row.name, []).append(Served(row, row.folder))
    return [
        Backbone(found, _among(named.get(each, {}), found), common[each], readers.get(each, ()))
        for each, found in by_name.items()
    ]


def _among(aliases: Mapping[str, int], versions: Sequence[Served]) -> dict[str, int]:
    """The aliases that point at given versions, sorted."""
    numbers = {version.number for version in versions}
    return {alias: number for alias, number in sorted(aliases.items()) if number in numbers}


def meant_by(state: AppState, backbone: Backbone, reference: str) -> Served | None:
    """The version that a reference means, if there is one, also if it is gone; see `Backbone.meant_by`."""
    return backbone.meant_by(reference, lambda version: commit_of(state, version))


def find(state: AppState, caller: Caller, name: str, reference: str) -> Served:
    """The version of a backbone that a reference means, also if it is gone. Raises the API's 404."""
    backbone = named(state, caller, name)
    found = meant_by(state, backbone, reference) if backbone else None
    if found is None:
        raise not_found("version", f"{name}:{reference}")
    return found


def find_ready(state: AppState, caller: Caller, name: str, reference: str) -> Served:
    """The same for a version whose files are needed. Raises the API's 404, and its 410 for one that is gone."""
    found = find(state, caller, name, reference)
    if found.gone:
        raise ApiProblem(410, "version_gone", gone_text(found))
    return found


def gone_text(version: Served) -> str:
    """What has happened to a version that is gone, and what to do."""
    name = f"{version.name}:{version.number}"
    return (
        f"{name} was deleted in MLflow, so it cannot be pulled: use another version. An operator who restores MLflow's "
        f"database brings it back, and deleting {name} here removes its files too"
    )


@dataclass(frozen=True)
class Content:
    """A version's files, according to its checksum file."""

    sums: dict[str, str]
    """The sha256 of each file, by its path."""
    data: bytes
    """The checksum file itself."""

    @property
    def commit(self) -> str:
        """40 hexadecimal digits that identify exactly these files."""
        return hashlib.sha256(self.data).hexdigest()[:40]

    @property
    def listed(self) -> dict[str, str]:
        """The sha256 of each file that is served, including the checksum file."""
        return self.sums | ({names.BACKBONE_SUMS: hashlib.sha256(self.data).hexdigest()} if self.data else {})


def content(state: AppState, version: Served) -> Content:
    """A version's content; empty if it has no checksum file. Raises the API's 404."""
    try:
        data = state.artifacts.read(version.folder, names.BACKBONE_SUMS) or b""
    except OutsideRoot as error:
        raise not_found("version", f"{version.name}:{version.number}") from error
    lines = (SUMS_LINE.fullmatch(line) for line in data.decode(errors="replace").splitlines())
    # No file of a version may take the place of the signature over its checksums.
    return Content({line[2]: line[1] for line in lines if line and line[2] != SIGNATURE_FILE}, data)


def commit_of(state: AppState, version: Served) -> str:
    """A version's commit. A cache avoids reading the checksums of each version more than once. Raises the API's 404."""
    known = COMMITS.get(version.folder)
    if known is not None:
        return known
    found = content(state, version)
    if found.data:
        if len(COMMITS) >= COMMITS_KEPT:
            COMMITS.clear()
        COMMITS[version.folder] = found.commit
    return found.commit


def stored(state: AppState, version: Served, path: str, listed: Mapping[str, str]) -> StoredFile:
    """A file of a version. Raises the API's 404 if it is missing, or not in the version's checksums."""
    file = state.artifacts.file(version.folder, path) if path in listed else None
    if file is None:
        raise not_found("file", path)
    return file


def belongs_to_card(path: str) -> bool:
    """Whether a file is the model card or one of its pictures, which come with every format."""
    return path == names.BACKBONE_CARD or path.startswith(f"{names.BACKBONE_PICTURES}/")


def formats_in(listed: Mapping[str, str]) -> list[str]:
    """The formats among a version's files, in their usual order."""
    folders = {path.partition("/")[0] for path in listed if "/" in path}
    return [form for form in formats.BACKBONE_FORMATS if form in folders]


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None

"""Uses of versions, recorded once for each token and day, and who made them. Those that get weights are downloads.

The totals of a version are in its row: `downloads` and `last_used_on`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.backbones.registry import Served
from service.backbones.use_schemas import VersionUserView
from service.db.tables import BackboneVersion, Token, VersionUse, now
from service.jobs import versions
from trainer.spec import formats

WEIGHTS: Final = frozenset({".safetensors", ".onnx", ".data", ".pt2"})
"""Endings of the files that hold weights: whoever loads a model reads one of them, and whoever looks at it need not."""


@dataclass(frozen=True)
class Use:
    """That somebody uses a version on a day."""

    name: str
    version: int
    source: str
    """The version's source in MLflow, which tells it from another one that gets its number later."""
    export_format: str
    """Empty for all formats at once."""
    day: date
    downloaded: bool
    """Whether it gets weights. Otherwise it asks for a file, as clients do before they load from their caches."""

    def only_asked(self) -> Use:
        """The same use by somebody who gets no file."""
        return replace(self, downloaded=False)

    def record(self, session: Session, token_id: str) -> None:
        """Record it, unless it is known already, or the version was deleted or replaced meanwhile.

        Of what a token only asks for, the first of a day is recorded.
        """
        row = session.get(BackboneVersion, (self.name, self.version))
        if row is None or row.source != self.source or row.state not in versions.SHOWN:
            return
        key = {"name": self.name, "version": self.version, "day": self.day, "token_id": token_id}
        known = {each.export_format: each for each in session.scalars(select(VersionUse).filter_by(**key))}
        same = known.get(self.export_format)
        recorded = same is not None and same.downloaded if self.downloaded else bool(known)
        if recorded:
            return
        if self.downloaded and not any(each.downloaded for each in known.values()):
            row.downloads += 1
        if same:
            same.downloaded = True
        else:
            session.add(VersionUse(**key, export_format=self.export_format, downloaded=self.downloaded))
        if not known:
            row.last_used_on = max(self.day, row.last_used_on or self.day)
            row.begin_anew()


def note(caller: Caller, version: Served, export_format: str, *, downloads: bool = True) -> None:
    """Say that the request uses a version: that is recorded if it succeeds. ``export_format``: empty for all formats at
    once. ``downloads``: whether it asks for weights.
    """
    if caller.trail:
        day = now().date()
        caller.trail.use = Use(version.name, version.number, version.row.source, export_format, day, downloads)


def note_file(caller: Caller, version: Served, path: str) -> None:
    """The same for a file of a version's folder, if it holds weights."""
    export_format, _, name = path.partition("/")
    if export_format in formats.BACKBONE_FORMATS and _holds_weights(name):
        note(caller, version, export_format)


def note_repository_file(caller: Caller, version: Served, export_format: str, path: str) -> None:
    """The same for any file of a format's repository: a client that has the weights asks for a small file alone."""
    note(caller, version, export_format, downloads=_holds_weights(path))


def _holds_weights(path: str) -> bool:
    return PurePosixPath(path).suffix in WEIGHTS


def users(session: Session, version: BackboneVersion) -> list[VersionUserView]:
    """Who has used a version, whoever did last first."""
    row = VersionUse
    of_version = row.name == version.name, row.version == version.version
    downloaded = func.max(case((row.downloaded, 1), else_=0)).label("downloaded")
    days = select(row.token_id, row.day, downloaded).where(*of_version).group_by(row.token_id, row.day).subquery()
    last = func.max(days.c.day)
    query = select(Token.owner, func.sum(days.c.downloaded), last).join(days, days.c.token_id == Token.id)
    totals = session.execute(query.group_by(Token.owner).order_by(last.desc(), Token.owner)).all()
    pairs = select(Token.owner, row.export_format).join(Token, Token.id == row.token_id).where(*of_version).distinct()
    found: dict[str, list[str]] = {}
    for owner, export_format in session.execute(pairs):
        found.setdefault(owner, []).append(export_format or "all")
    return [
        VersionUserView(owner=owner, downloads=downloads, last_used_on=last_day, formats=sorted(found[owner]))
        for owner, downloads, last_day in totals
    ]


def last_users(session: Session, backbone: str) -> dict[int, list[str]]:
    """Who used each version of a backbone on the last day on which anybody did, by number, sorted."""
    row, version = VersionUse, BackboneVersion
    of_last_day = row.name == version.name, row.version == version.version, row.day == version.last_used_on
    query = select(row.version, Token.owner).join(version, and_(*of_last_day)).join(Token, Token.id == row.token_id)
    found: dict[int, list[str]] = {}
    for number, owner in session.execute(query.where(row.name == backbone).distinct().order_by(Token.owner)):
        found.setdefault(number, []).append(owner)
    return found


def of_repositories(
    session: Session, backbones: Collection[str] | None = None, days: int | None = None
) -> Mapping[tuple[str, str], int]:
    """Downloads of each format of all backbones, or of some, in all versions, by the backbone's name and the format.

    An archive of all formats counts for no format. ``days``: only in these last days; by default since downloads are
    counted.
    """
    query = select(VersionUse.name, VersionUse.export_format, func.count()).where(VersionUse.downloaded)
    if backbones is not None:
        query = query.where(VersionUse.name.in_(backbones))
    if days is not None:
        query = query.where(VersionUse.day > now().date() - timedelta(days=days))
    found = session.execute(query.group_by(VersionUse.name, VersionUse.export_format))
    return {(name, export_format): downloads for name, export_format, downloads in found}

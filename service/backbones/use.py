"""Downloads of versions, counted once for each token and day, and who made them.

The totals of a version are in its row: `downloads` and `last_used_on`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import and_, func, select
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
class Download:
    """That somebody downloads weights of a version on a day."""

    name: str
    version: int
    source: str
    """The version's source in MLflow, which tells it from another one that gets its number later."""
    export_format: str
    """Empty for all formats at once."""
    day: date

    def record(self, session: Session, token_id: str) -> None:
        """Count it, unless it is counted already, or the version was deleted or replaced meanwhile."""
        row = session.get(BackboneVersion, (self.name, self.version))
        if row is None or row.source != self.source or row.state not in versions.SHOWN:
            return
        key = {"name": self.name, "version": self.version, "day": self.day, "token_id": token_id}
        known = session.scalars(select(VersionUse.export_format).filter_by(**key)).all()
        if self.export_format in known:
            return
        session.add(VersionUse(**key, export_format=self.export_format))
        if not known:
            row.downloads += 1
            row.last_used_on = max(self.day, row.last_used_on or self.day)
            row.begin_anew()


def note(caller: Caller, version: Served, export_format: str) -> None:
    """Say that the request downloads weights of a version: it is counted if it succeeds. ``export_format``: empty for
    all formats at once.
    """
    if caller.trail:
        download = Download(version.name, version.number, version.row.source, export_format, now().date())
        caller.trail.download = download


def note_file(caller: Caller, version: Served, path: str) -> None:
    """The same for a file of a version's folder, if it holds weights."""
    export_format, _, name = path.partition("/")
    if export_format in formats.BACKBONE_FORMATS and PurePosixPath(name).suffix in WEIGHTS:
        note(caller, version, export_format)


def users(session: Session, version: BackboneVersion) -> list[VersionUserView]:
    """Who has downloaded a version, whoever did last first."""
    row = VersionUse
    of_version = row.name == version.name, row.version == version.version
    days = select(row.token_id, row.day).where(*of_version).distinct().subquery()
    query = select(Token.owner, func.count(), func.max(days.c.day)).join(days, days.c.token_id == Token.id)
    totals = session.execute(query.group_by(Token.owner).order_by(func.max(days.c.day).desc(), Token.owner)).all()
    pairs = select(Token.owner, row.export_format).join(Token, Token.id == row.token_id).where(*of_version).distinct()
    found: dict[str, list[str]] = {}
    for owner, export_format in session.execute(pairs):
        found.setdefault(owner, []).append(export_format or "all")
    return [
        VersionUserView(owner=owner, downloads=downloads, last_used_on=last, formats=sorted(found[owner]))
        for owner, downloads, last in totals
    ]


def last_users(session: Session, backbone: str) -> dict[int, list[str]]:
    """Who downloaded each version of a backbone on the last day on which anybody did, by number, sorted."""
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

    ``days``: only in these last days; by default since downloads are counted.
    """
    query = select(VersionUse.name, VersionUse.export_format, func.count())
    if backbones is not None:
        query = query.where(VersionUse.name.in_(backbones))
    if days is not None:
        query = query.where(VersionUse.day > now().date() - timedelta(days=days))
    found = session.execute(query.group_by(VersionUse.name, VersionUse.export_format))
    return {(name, export_format): downloads for name, export_format, downloads in found}

"""Downloads of versions, counted by token and day, and when each was last used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.db.tables import VersionUse


@dataclass(frozen=True)
class Use:
    """How much a version is used."""

    downloads: int = 0
    """Days on which a token downloaded weights of it, added up over all tokens."""
    last_used_on: date | None = None
    """The last of these days, in UTC; None if nobody has ever downloaded it."""


UNUSED = Use()


def of_backbones(session: Session, backbones: Sequence[str]) -> dict[tuple[str, int], Use]:
    """The use of the versions of some backbones, by name and number; those that nobody has used are missing."""
    row = VersionUse
    days = select(row.name, row.version, row.day, row.token_id).where(row.name.in_(backbones)).distinct().subquery()
    query = select(days.c.name, days.c.version, func.count(), func.max(days.c.day))
    found = session.execute(query.group_by(days.c.name, days.c.version))
    return {(name, version): Use(downloads, last) for name, version, downloads, last in found}

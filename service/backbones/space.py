"""How much space versions use, and the totals of backbones and owners."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.backbones.use_schemas import OwnerSpaceView
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, RegisteredBackbone
from service.jobs import versions


class Totals(NamedTuple):
    """What some versions have in all."""

    bytes: int | None
    """None if the size of none is known."""
    downloads: int
    last_used_on: date | None


def totals(rows: Collection[BackboneVersion]) -> Totals:
    """The totals of some versions."""
    sizes = [row.bytes for row in rows if row.bytes is not None]
    days = [row.last_used_on for row in rows if row.last_used_on is not None]
    return Totals(sum(sizes) if sizes else None, sum(row.downloads for row in rows), max(days, default=None))


def by_owner(state: AppState, caller: Caller) -> list[OwnerSpaceView]:
    """What the backbones of each owner take, the most first: the caller's own, or of all owners for those who may
    change everybody's backbones.
    """
    row, backbone = BackboneVersion, RegisteredBackbone
    size = func.sum(func.coalesce(row.bytes, 0))
    unknown = func.count() - func.count(row.bytes)
    query = select(backbone.owner, func.count(backbone.name.distinct()), func.count(), size, unknown)
    query = query.join(row, row.name == backbone.name).where(row.state.in_(versions.SHOWN))
    if owner := caller.only_owner(Scope.BACKBONES):
        query = query.where(backbone.owner == owner)
    with state.database.query() as session:
        found = session.execute(query.group_by(backbone.owner).order_by(size.desc(), backbone.owner)).all()
    return [
        OwnerSpaceView(owner=owner, backbones=backbones, versions=number, bytes=int(total or 0), unmeasured=missing)
        for owner, backbones, number, total, missing in found
    ]


# --- what the controller measures -------------------------------------------------------------------------------------


def unmeasured() -> Select[BackboneVersion]:
    """The versions that are shown, have a folder, and are of unknown size."""
    row = BackboneVersion
    return select(row).where(row.state.in_(versions.SHOWN), row.folder.is_not(None), row.bytes.is_(None))


def record(session: Session, version: BackboneVersion, size: int) -> None:
    """Store a version's size in bytes, unless the version was deleted or replaced since its row was read."""
    row = session.get(BackboneVersion, (version.name, version.version))
    if row and row.state in versions.SHOWN and row.source == version.source:
        row.bytes = size

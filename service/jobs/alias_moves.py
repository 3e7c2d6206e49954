"""The history of aliases: who moved which alias, when and why. For `champion` it says who approved the version.

Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import AliasMove, BackboneVersion
from service.http.paging import read_number, write_cursor


def record(
    session: Session,
    name: str,
    alias: str,
    *,
    to: BackboneVersion | None,
    before: int | None,
    actor: str | None,
    token_id: str | None = None,
    reason: str = "",
) -> None:
    """Record that an alias points at another version now, or, without ``to``, at none."""
    number, source = (to.version, to.source) if to else (None, None)
    session.add(
        AliasMove(
            name=name, alias=alias, version=number, source=source, before=before,
            actor=actor, token_id=token_id, reason=reason,
        )
    )  # fmt: skip


def moves(
    session: Session, name: str, alias: str | None, limit: int, cursor: str | None
) -> tuple[Sequence[AliasMove], str | None]:
    """One page of the moves of a backbone's aliases, or of one alias, newest first, and the cursor of the next page."""
    query = select(AliasMove).where(AliasMove.name == name)
    if alias is not None:
        query = query.where(AliasMove.alias == alias)
    if cursor:
        query = query.where(AliasMove.id < read_number(cursor))
    rows = session.scalars(query.order_by(AliasMove.id.desc()).limit(limit + 1)).all()
    return rows[:limit], write_cursor([rows[limit - 1].id]) if len(rows) > limit else None


def approvers(session: Session, version: BackboneVersion, alias: str) -> set[str]:
    """Who has ever pointed an alias at a version here. MLflow's other version of that number is not this one."""
    query = select(AliasMove.actor).where(AliasMove.name == version.name, AliasMove.alias == alias)
    query = query.where(AliasMove.version == version.version, AliasMove.source == version.source)
    return {actor for actor in session.scalars(query.distinct()) if actor is not None}

"""Aliases of versions, and their history: who moved which alias, when and why. Of `champion` it says who approved it.

Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import AliasMove, BackboneAlias, BackboneVersion, RegisteredBackbone, now
from service.events.outbox import emit
from service.events.types import EventType
from service.http.paging import read_number, write_cursor
from service.jobs.version_events import tell, urls
from service.jobs.version_tags import metrics_of
from trainer.protocol import names


def of_backbones(session: Session, backbones: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """The versions of all aliases, or of some backbones', by the backbone's name and the alias."""
    query = select(BackboneAlias).order_by(BackboneAlias.name, BackboneAlias.alias)
    found: dict[str, dict[str, int]] = {}
    for row in session.scalars(query if backbones is None else query.where(BackboneAlias.name.in_(backbones))):
        found.setdefault(row.name, {})[row.alias] = row.version
    return found


def of_version(session: Session, version: BackboneVersion) -> list[str]:
    """The aliases that point at a version, sorted."""
    query = select(BackboneAlias.alias).where(
        BackboneAlias.name == version.name, BackboneAlias.version == version.version
    )
    return sorted(session.scalars(query))


def keeps(session: Session, version: BackboneVersion) -> str:
    """Why a version with aliases is not deleted, and what to do first; empty for one without."""
    named = of_version(session, version)
    if not named:
        return ""
    name, backbone = version.name, session.get(RegisteredBackbone, version.name)
    ruled = names.CHAMPION in named and backbone is not None and backbone.champion_rule is not None
    removable = [alias for alias in named if not (ruled and alias == names.CHAMPION)]
    text = f"{name}:{version.version} has the alias {name}@{', @'.join(named)}: first move it to another version"
    if removable:
        first = removable[0]
        route = f"DELETE /v1/backbones/{name}/aliases/{first}"
        text += f", or remove it: {route}, or rcmae backbones alias {name} {first} --remove"
    return f"{text}; {names.CHAMPION} has a rule, and can only be moved" if ruled else text


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


def last_set(session: Session, name: str, alias: str) -> AliasMove | None:
    """The last move that pointed an alias at a version, which may be gone by now, with its alias."""
    query = select(AliasMove).where(AliasMove.name == name, AliasMove.alias == alias, AliasMove.version.is_not(None))
    return session.scalars(query.order_by(AliasMove.id.desc()).limit(1)).first()


# --- changing ---------------------------------------------------------------------------------------------------------


def point(
    session: Session, version: BackboneVersion, alias: str, actor: str, *, token_id: str | None = None, reason: str = ""
) -> None:
    """Point an alias at a version, whatever it pointed at before."""
    row = session.get(BackboneAlias, (version.name, alias))
    before = row.version if row else None
    if row and before != version.version:
        _unname(session, row)
    version.begin_anew()
    if before != version.version:
        _set(session, version, alias, before, actor=actor, token_id=token_id, reason=reason)


def take_over(session: Session, version: BackboneVersion, alias: str, *, told: bool) -> None:
    """Point an alias at a version that has it in MLflow, unless the service has one of that name or a rule forbids it.

    ``told``: whether webhooks hear of it.
    """
    if _may_take_over(session, version.name, alias):
        _set(session, version, alias, None, told=told)


def _may_take_over(session: Session, name: str, alias: str) -> bool:
    """Whether an alias that only MLflow has is taken over. A rule for the champion is not met by setting it there."""
    backbone = session.get_one(RegisteredBackbone, name)
    ruled = alias == names.CHAMPION and backbone.champion_rule is not None
    return not ruled and session.get(BackboneAlias, (name, alias)) is None


def unpoint(
    session: Session,
    alias: BackboneAlias,
    actor: str | None,
    *,
    token_id: str | None = None,
    reason: str = "",
    told: bool = True,
) -> None:
    """Remove an alias; its version stays. ``told``: whether webhooks hear of it."""
    _unname(session, alias)
    session.delete(alias)
    _record(
        session, alias.name, alias.alias, to=None, before=alias.version, actor=actor, token_id=token_id, reason=reason
    )
    if told:
        data: dict[str, Any] = {"name": alias.name, "version": None, "alias": alias.alias, "before": alias.version}
        data |= {"actor": actor, "reason": reason, "urls": urls(alias.name, None)}
        emit(session, EventType.ALIAS_MOVED, data, backbone=alias.name)


def _set(
    session: Session,
    version: BackboneVersion,
    alias: str,
    before: int | None,
    *,
    actor: str | None = None,
    token_id: str | None = None,
    reason: str = "",
    told: bool = True,
) -> None:
    """Point an alias at a version; ``told``: whether webhooks hear of it."""
    session.merge(BackboneAlias(name=version.name, alias=alias, version=version.version))
    _record(session, version.name, alias, to=version, before=before, actor=actor, token_id=token_id, reason=reason)
    if told:
        tell(session, EventType.ALIAS_MOVED, version, alias=alias, before=before, actor=actor, reason=reason)


def _record(
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
    move = AliasMove(name=name, alias=alias, before=before, actor=actor, token_id=token_id, reason=reason)
    if to:
        move.version, move.source, move.metrics = to.version, to.source, metrics_of(to.tags)
    session.add(move)


def _unname(session: Session, alias: BackboneAlias) -> None:
    """Record that an alias leaves its version: retention rules count the days without a use from then."""
    version = session.get(BackboneVersion, (alias.name, alias.version))
    if version is not None:
        version.unnamed_at = now()
        version.begin_anew()

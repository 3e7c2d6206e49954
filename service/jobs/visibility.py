"""What a caller sees of the registered versions, and who the readers of private backbones are.

Every function works inside its caller's transaction. `service.auth.sight` decides who sees what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, not_, select, true
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.auth.sight import joined_by, joined_by_owner, seen
from service.db.tables import BackboneReader, BackboneVersion, Job, RegisteredBackbone
from service.jobs.registering import registered_name
from service.jobs.versions import SHOWN


def shown_backbones(
    session: Session,
    caller: Caller,
    contains: str,
    after: str,
    limit: int,
    conditions: Sequence[ColumnElement[bool]] = (),
) -> Sequence[str]:
    """The first names after another one, in the database's order, of backbones that a caller sees.

    ``contains``: a part of the names, in upper or lower case; empty for all of them. ``conditions``, such as those of
    `versions.owned_by`, `with_labels` and `with_words`, are what one of the versions must meet.
    """
    query = select(BackboneVersion.name).where(BackboneVersion.state.in_(SHOWN), BackboneVersion.name > after)
    if contains:
        query = query.where(BackboneVersion.name.icontains(contains, autoescape=True))
    if conditions := [*seen(caller), *conditions]:
        query = query.join(RegisteredBackbone, RegisteredBackbone.name == BackboneVersion.name).where(*conditions)
    return session.scalars(query.distinct().order_by(BackboneVersion.name).limit(limit)).all()


def tags_of_shown(session: Session, caller: Caller) -> Sequence[dict[str, str]]:
    """The tags of all versions that a caller sees."""
    query = select(BackboneVersion.tags).where(BackboneVersion.state.in_(SHOWN))
    if conditions := seen(caller):
        query = query.join(RegisteredBackbone, RegisteredBackbone.name == BackboneVersion.name).where(*conditions)
    return session.scalars(query).all()


def seen_backbones(session: Session, caller: Caller, names: Iterable[str]) -> dict[str, RegisteredBackbone]:
    """The rows of those of some backbones that a caller sees, by name."""
    query = select(RegisteredBackbone).where(RegisteredBackbone.name.in_(names), *seen(caller))
    return {row.name: row for row in session.scalars(query)}


def readers(session: Session, backbones: Sequence[str]) -> dict[str, list[str]]:
    """The readers of some private backbones, sorted, by the backbone's name."""
    query = select(BackboneReader).where(BackboneReader.name.in_(backbones)).order_by(BackboneReader.reader)
    found: dict[str, list[str]] = {}
    for row in session.scalars(query) if backbones else ():
        found.setdefault(row.name, []).append(row.reader)
    return found


def joined_backbones(session: Session, caller: Caller, names: Iterable[str]) -> set[str]:
    """Those of some backbones of which a caller's job may register a version."""
    query = select(RegisteredBackbone.name).where(RegisteredBackbone.name.in_(names), *joined_by(caller))
    return {*session.scalars(query)}


def closed_to(session: Session, jobs: Iterable[str]) -> set[str]:
    """The ids of those of some jobs whose versions must not join a backbone: it is private, and the job's owner owns
    nothing of it.

    To join it would make them owners of a version, who see the backbone for good. Whether the token of somebody who
    owns something is still valid does not matter, nor whether that of an operator has ended since the job was
    submitted: no long training is lost to a token that was rotated.
    """
    found = {job.id: registered_name(job) for job in session.scalars(select(Job).where(Job.id.in_(jobs)))}
    query = select(Job.id, RegisteredBackbone.name).join(RegisteredBackbone, true())
    query = query.where(Job.id.in_(found), RegisteredBackbone.name.in_([name for name in found.values() if name]))
    query = query.where(not_(joined_by_owner(Job.owner, Job.created_at)))
    return {job for job, name in session.execute(query) if found[job] == name}


def not_joined(backbone: str) -> str:
    """What the message of a job says whose version did not join a private backbone."""
    return (
        f"{backbone} is a private backbone of others by now, so this version of it is not served: publish a checkpoint "
        f"under another name, or ask its owner to open {backbone} to all for a moment, which makes you an owner of it."
    )

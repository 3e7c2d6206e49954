"""Deleted versions that are not removed yet. Every function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import DeletedVersion


def deleted(session: Session) -> Sequence[DeletedVersion]:
    """All deleted versions, the oldest deletion first."""
    return session.scalars(select(DeletedVersion).order_by(DeletedVersion.deleted_at)).all()


def hide(session: Session, name: str, version: int, job_id: str, source: str, folder: str) -> None:
    """Record a version as deleted, which hides it. It is safe to repeat."""
    session.merge(DeletedVersion(name=name, version=version, job_id=job_id, source=source, folder=folder))


def forget(session: Session, name: str, version: int) -> None:
    """Drop the record: the version has been removed completely, or is to be visible again."""
    row = session.get(DeletedVersion, (name, version))
    if row:
        session.delete(row)

"""Versions that were deleted and whose remains have not been removed yet. Works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import DeletedVersion


def deleted(session: Session) -> Sequence[DeletedVersion]:
    """All of them, the oldest deletion first."""
    return session.scalars(select(DeletedVersion).order_by(DeletedVersion.deleted_at)).all()


def hide(session: Session, name: str, version: int, job_id: str, source: str, folder: str) -> None:
    """Let a version be gone for people. Doing it twice changes nothing."""
    session.merge(DeletedVersion(name=name, version=version, job_id=job_id, source=source, folder=folder))


def forget(session: Session, name: str, version: int) -> None:
    """Nothing is left of it, or it comes back."""
    found = session.get(DeletedVersion, (name, version))
    if found:
        session.delete(found)

"""Which job follows which: an evaluation that the service submitted by itself follows the job that it measures."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import InstrumentedAttribute

from service.db.tables import Job


def followers(job_id: str | ColumnElement[str] | InstrumentedAttribute[str]) -> Select[Any]:
    """Reads the id of the job that follows another one, at most one; deleted ones do not count."""
    follower = Job.__table__.alias("follower").c
    return select(follower.id).where(follower.follows == job_id, follower.deleted_at.is_(None))

"""Pages of the list of jobs, filtered in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, Text, cast, func, or_, select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.db.tables import Job, Label
from service.http.filters import label_pairs
from service.http.paging import read_moment, utc, write_cursor
from service.jobs.following import followers
from service.jobs.schemas import JobSummary
from service.jobs.state import State
from trainer.spec.job import Kind

JOB: Final = Job.__table__.c
"""Columns of the table: attributes of the ORM would cost more time for each row."""
VIEW_COLUMNS: Final = [
    *(JOB[name] for name in JobSummary.model_fields if name not in {"promoted_from", "followed_by"}),
    JOB.search_id,
    JOB.trial,
]
"""The columns that a list of jobs reads, besides the spec. Rows hold more, and decoding their JSON would take most of a
list's time."""
FOLLOWER: Final = followers(JOB.id).scalar_subquery().label("follower")
"""The job that follows the one of the row."""
SPEC: Final = cast(func.coalesce(JOB.resolved_spec, JOB.spec), Text).label("spec")
"""The JSON of the spec as it is stored: a list in JSON needs no other form of it."""


@dataclass(frozen=True)
class Filters:
    """Filters of a list of jobs, applied in SQL."""

    state: Sequence[State] = ()
    kind: Kind | None = None
    owner: str | None = None
    label: Sequence[str] = ()
    """Each as `name:value`; a job has to have all of them."""
    name_contains: str | None = None
    created_after: datetime | None = None
    visible_to: Caller | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = [JOB.deleted_at.is_(None)]
        if self.state:
            conditions.append(JOB.state.in_([state.value for state in self.state]))
        if self.kind:
            conditions.append(JOB.kind == self.kind)
        if self.owner:
            conditions.append(JOB.owner == self.owner)
        if self.visible_to and self.visible_to.sees_only is not None:
            conditions.append(JOB.owner == self.visible_to.sees_only)
        if self.name_contains:
            conditions.append(JOB.name.icontains(self.name_contains, autoescape=True))
        if self.created_after:
            conditions.append(JOB.created_at > utc(self.created_after))
        return conditions


def jobs_query(filters: Filters, limit: int, cursor: str | None) -> Select[Any]:
    """Reads the fields of a page of jobs, newest first, and one job more if there is another page."""
    query = select(*VIEW_COLUMNS, FOLLOWER, SPEC).where(*filters.conditions())
    created_at, identity = JOB.created_at, JOB.id
    for name, value in label_pairs(filters.label):
        table = Label.__table__.alias()
        label = table.c
        query = query.join(table, label.job_id == JOB.id).where(label.name == name, label.value == value)
        created_at, identity = label.created_at, label.job_id  # the same values, in the order of the labels' index
    if cursor:
        moment, job_id = read_moment(cursor)
        # The first condition lets the database seek in its index.
        query = query.where(created_at <= moment, or_(created_at < moment, identity < job_id))
    return query.order_by(created_at.desc(), identity.desc()).limit(limit + 1)


def jobs_page(
    session: Session, filters: Filters, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The fields of a page of jobs, newest first, specs as JSON, and the cursor of the next page."""
    rows = session.connection().execute(jobs_query(filters, limit, cursor))
    names = tuple(rows.keys())
    jobs = [dict(zip(names, row, strict=True)) for row in rows]
    more = len(jobs) > limit
    last = jobs[limit - 1] if more else None
    return jobs[:limit], write_cursor([last["created_at"].isoformat(), last["id"]]) if last else None

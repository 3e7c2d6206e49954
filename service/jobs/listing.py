"""Pages of the list of jobs, filtered in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, aliased

from service.auth.caller import Caller
from service.db.tables import Job, Label
from service.http.paging import read_moment, utc, write_cursor
from service.http.problems import ApiProblem
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.spec.job import Kind


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
        conditions: list[ColumnElement[bool]] = [Job.deleted_at.is_(None)]
        if self.state:
            conditions.append(Job.state.in_([state.value for state in self.state]))
        if self.kind:
            conditions.append(Job.kind == self.kind)
        if self.owner:
            conditions.append(Job.owner == self.owner)
        if self.visible_to and self.visible_to.sees_only is not None:
            conditions.append(Job.owner == self.visible_to.sees_only)
        if self.name_contains:
            conditions.append(Job.name.icontains(self.name_contains, autoescape=True))
        if self.created_after:
            conditions.append(Job.created_at > utc(self.created_after))
        return conditions

    def labels(self) -> list[tuple[str, str]]:
        """Name and value of each label; raises the API's 422 for a label without a colon."""
        for label in self.label:
            if ":" not in label:
                raise ApiProblem(422, "parameter_invalid", f"label: write name:value, not {label!r}")
        return [(name, value) for name, _, value in (label.partition(":") for label in self.label)]


COMPUTED: Final = {"spec", "promoted_from"}
"""Fields of `JobView` that are not columns."""
VIEW_COLUMNS: Final = [getattr(Job, name) for name in JobView.model_fields if name not in COMPUTED] + [
    Job.search_id,
    Job.trial,
]
"""The columns that a list of jobs reads. Rows hold more, and decoding their JSON would take most of a list's time."""


def jobs_query(filters: Filters, limit: int, cursor: str | None) -> Select[Any]:
    """Reads the fields of a page of jobs, newest first, and one job more if there is another page."""
    query = select(*VIEW_COLUMNS, func.coalesce(Job.resolved_spec, Job.spec).label("spec")).where(*filters.conditions())
    created_at, identity = Job.created_at, Job.id
    for name, value in filters.labels():
        label = aliased(Label)
        query = query.join(label, label.job_id == Job.id).where(label.name == name, label.value == value)
        created_at, identity = label.created_at, label.job_id  # the same values, in the order of the labels' index
    if cursor:
        moment, job_id = read_moment(cursor)
        # The first condition lets the database seek in its index.
        query = query.where(created_at <= moment, or_(created_at < moment, identity < job_id))
    return query.order_by(created_at.desc(), identity.desc()).limit(limit + 1)


def jobs_page(
    session: Session, filters: Filters, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The fields of a page of jobs, newest first, and the cursor of the next page."""
    jobs: list[dict[str, Any]] = [{**row} for row in session.execute(jobs_query(filters, limit, cursor)).mappings()]
    more = len(jobs) > limit
    last = jobs[limit - 1] if more else None
    return jobs[:limit], write_cursor([last["created_at"].isoformat(), last["id"]]) if last else None

"""Pages of the list of evaluations, filtered and sorted in SQL."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, false, or_, select
from sqlalchemy.orm import Session, aliased

from service.auth.caller import Caller
from service.db.tables import BackboneAlias, EvaluationRow, EvaluationScore, Job, Label
from service.http.filters import label_pairs
from service.http.paging import bad_cursor, read_cursor, read_value, utc, write_cursor
from service.http.problems import ApiProblem
from service.jobs.evaluations import visible
from trainer.spec.base import Problem
from trainer.spec.subject import reference

MCE: Final = "eval/mce"
BY_TIME: Final[dict[str, Any]] = {"created_at": Job.created_at, "finished_at": EvaluationRow.finished_at}
NEWEST: Final = "-created_at"
SORT: Final = rf"-?({'|'.join(BY_TIME)}|eval/[A-Za-z0-9_./-]{{1,200}})"
"""What `sort` may be, as a regular expression."""


@dataclass(frozen=True)
class Filters:
    """Filters of evaluations; one has to match all of them."""

    backbone: str | None = None
    """`NAME`, `NAME:3` or `NAME@alias`."""
    job: str | None = None
    """The job that trained what was measured."""
    dataset: str | None = None
    """URI, title or fingerprint of the images for training."""
    test: str | None = None
    """The same of the images for the test."""
    protocol: Sequence[str] = ()
    """At least one of them."""
    owner: str | None = None
    """Of the evaluation's job."""
    label: Sequence[str] = ()
    """Of the evaluation's job: each as `name:value`."""
    created_after: datetime | None = None

    def query(self, session: Session, caller: Caller) -> Select[EvaluationRow, Job]:
        """The evaluations that match and that a caller sees, each with its job. Raises the API's 422."""
        query = select(EvaluationRow, Job).join(Job, Job.id == EvaluationRow.job_id)
        pairs = label_pairs(self.label)
        if pairs and caller.sees_only is not None:  # or it would tell the labels of jobs that the caller does not see
            query = query.where(Job.owner == caller.sees_only)
        for name, value in pairs:
            label = aliased(Label)
            query = query.join(label, label.job_id == Job.id).where(label.name == name, label.value == value)
        return query.where(Job.deleted_at.is_(None), visible(caller), *self._conditions(session))

    def _conditions(self, session: Session) -> list[ColumnElement[bool]]:
        row = EvaluationRow
        conditions = _measured(session, self.backbone) if self.backbone else []
        if self.job:
            conditions.append(row.trained_by == self.job)
        if self.dataset:
            conditions.append(_among(self.dataset, row.train_uri, row.train_title, row.train_fingerprint))
        if self.test:
            conditions.append(_among(self.test, row.test_uri, row.test_title, row.test_fingerprint))
        if self.protocol:
            measured = select(EvaluationScore.job_id).where(EvaluationScore.protocol.in_(self.protocol))
            conditions.append(row.job_id.in_(measured))
        if self.owner:
            conditions.append(Job.owner == self.owner)
        if self.created_after:
            conditions.append(Job.created_at > utc(self.created_after))
        return conditions


def _among(text: str, *columns: Any) -> ColumnElement[bool]:
    return or_(*(column == text for column in columns))


def _measured(session: Session, text: str) -> list[ColumnElement[bool]]:
    """What an evaluation of a registered backbone meets. Raises the API's 422 for what names none."""
    try:
        name, version, alias = reference(text)
    except ValueError as error:
        raise refused("backbone", text, str(error)) from error
    if alias:
        row = session.get(BackboneAlias, (name, alias))
        if row is None:
            return [false()]
        version = row.version
    return [EvaluationRow.name == name, *([EvaluationRow.version == version] if version else [])]


def page(
    session: Session, caller: Caller, filters: Filters, sort: str | None, limit: int, cursor: str | None
) -> tuple[list[tuple[EvaluationRow, Job]], str | None]:
    """One page of evaluations with their jobs, and the cursor of the next one.

    Those without the score to sort by come last. Raises the API's 422, also for a score that no evaluation has.
    """
    order = sort or NEWEST
    key, descending = order.removeprefix("-"), order.startswith("-")
    query = filters.query(session, caller)
    if key in BY_TIME:
        value: Any = BY_TIME[key]
    elif key == MCE:
        value = EvaluationRow.mce
    else:
        score = aliased(EvaluationScore)
        query = query.outerjoin(score, and_(score.job_id == EvaluationRow.job_id, score.key == key))
        value = score.top1
    if cursor:
        query = query.where(_after(cursor, order, value, descending=descending))
    by_value = value.desc() if descending else value.asc()
    query = query.order_by(value.is_(None), by_value, EvaluationRow.job_id.desc()).limit(limit + 1)
    rows = [(row, job, last) for row, job, last in session.execute(query.add_columns(value))]
    if key not in BY_TIME and (not rows or rows[0][2] is None):
        _check_key(session, caller, key)
    pairs = [(row, job) for row, job, _ in rows[:limit]]
    if len(rows) <= limit:
        return pairs, None
    return pairs, write_cursor([order, _written(rows[limit - 1][2]), pairs[-1][0].job_id])


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _after(cursor: str, order: str, value: Any, *, descending: bool) -> ColumnElement[bool]:
    """What comes after the last evaluation of a page. Raises the API's 422 for a cursor of another list."""
    last, job_id = _last(cursor, order)
    later_ids = EvaluationRow.job_id < job_id
    if last is None:
        return and_(value.is_(None), later_ids)
    beyond = value < last if descending else value > last
    return or_(beyond, and_(value == last, later_ids), value.is_(None))


def _last(cursor: str, order: str) -> tuple[datetime | float | None, str]:
    """The value and the job of the last evaluation of a page."""
    match read_cursor(cursor):
        case [str(of), last, str(job_id)] if of == order and job_id.isascii() and job_id.isprintable():
            if order.removeprefix("-") in BY_TIME:
                return _moment(last, cursor), job_id
            if last is None:
                return None, job_id
            if isinstance(last, int | float) and not isinstance(last, bool):
                return read_value(last, cursor), job_id
    raise bad_cursor(cursor)


def _moment(text: object, cursor: str) -> datetime:
    try:
        return utc(datetime.fromisoformat(str(text)))
    except ValueError as error:
        raise bad_cursor(cursor) from error


def _check_key(session: Session, caller: Caller, key: str) -> None:
    """Raises the API's 422 for a score that no evaluation has which the caller sees: a typing error is no order."""
    seen = select(EvaluationScore.key).join(EvaluationRow, EvaluationRow.job_id == EvaluationScore.job_id)
    seen = seen.join(Job, Job.id == EvaluationRow.job_id).where(Job.deleted_at.is_(None), visible(caller))
    known = {MCE, *session.scalars(seen.distinct())}
    if key not in known and len(known) > 1:
        nearest = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(known)
        raise refused("sort", key, f"no evaluation here has this score; the nearest are {', '.join(nearest)}")


def refused(parameter: str, value: str, text: str) -> ApiProblem:
    """The API's 422 for the value of a parameter."""
    problem = Problem(parameter, "", value, text)
    return ApiProblem(422, "parameter_invalid", str(problem), (problem,))

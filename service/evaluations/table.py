"""The table of backbones against measurements."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.db.tables import EvaluationRow, EvaluationScore, Job
from service.evaluations.listing import Filters
from service.evaluations.schemas import EvaluationTableView, SubjectView, TableCellView, TableColumnView, TableRowView
from service.jobs import evaluations
from service.jobs.evaluations import Measure

MOST: Final = 2000
"""Evaluations of one table: with more of them, the newest are read."""
MOST_ROWS: Final = 500
MOST_COLUMNS: Final = 200
"""With more of them, those of the newest evaluations are shown."""

Subject = tuple[str, int, str]
"""What tells one row from another: the backbone's name or the title, the version, and where other weights are from."""
Cells = dict[Measure, dict[Subject, TableCellView]]


def table(session: Session, caller: Caller, filters: Filters) -> EvaluationTableView:
    """The backbones of the evaluations that match, each with its newest score by each measurement."""
    query = filters.query(session, caller)
    pairs = session.execute(query.order_by(EvaluationRow.finished_at.desc(), EvaluationRow.job_id.desc()).limit(MOST))
    jobs = {row.job_id: (row, job) for row, job in pairs}
    subjects: dict[Subject, SubjectView] = {}
    columns: dict[Measure, TableColumnView] = {}
    cells: Cells = {}
    cut: set[str] = set()
    for each in evaluations.found(session, [row for row, _ in jobs.values()]):
        subject = _subject(*jobs[each.row.job_id])
        for measure, score in each.own():
            if not _asked(score, filters.protocol) or subject in cells.get(measure, ()):
                continue
            if not (_has_room(subjects, subject, MOST_ROWS) and _has_room(columns, measure, MOST_COLUMNS)):
                cut.add(each.row.job_id)
                continue
            subjects.setdefault(subject, subject_view(each.row))
            if measure not in columns:
                columns[measure] = TableColumnView(**vars(each.measure(score)))
            cells.setdefault(measure, {})[subject] = TableCellView(**vars(each.measured(score)))
    for measure, column in columns.items():
        _compare(column, list(cells[measure].values()))
    total = session.scalar(select(func.count()).select_from(query.subquery())) if len(jobs) == MOST else len(jobs)
    return _view(subjects, columns, cells, (total or 0) - len(jobs) + len(cut))


def subject_view(row: EvaluationRow) -> SubjectView:
    """What an evaluation has measured."""
    return SubjectView(title=row.title, name=row.name, version=row.version, job=row.trained_by)


def _subject(row: EvaluationRow, job: Job) -> Subject:
    """A version that is gone stays apart from another one of its number, and files of one name from each other."""
    if row.name is not None and row.version is not None:
        return row.name, row.version, ""
    return row.title, 0, json.dumps(job.spec.get("backbone"), sort_keys=True)


def _asked(score: EvaluationScore, protocols: Collection[str]) -> bool:
    return not protocols or score.protocol in protocols


def _has_room(known: Collection[object], wanted: object, most: int) -> bool:
    return wanted in known or len(known) < most


def _compare(column: TableColumnView, cells: Sequence[TableCellView]) -> None:
    """Mark a column's best where all were measured alike and chance does not explain that it is the best: its interval
    parts from all others.
    """
    column.differs = evaluations.differing([cell.settings for cell in cells])
    for cell in cells:
        cell.settings = {name: cell.settings.get(name) for name in column.differs}
    ranked = sorted(cells, key=lambda cell: -cell.top1)
    others = ranked[1:]
    if others and not column.differs and all(other.interval.high < ranked[0].interval.low for other in others):
        ranked[0].best = True


def _view(
    subjects: Mapping[Subject, SubjectView], columns: Mapping[Measure, TableColumnView], cells: Cells, left_out: int
) -> EvaluationTableView:
    measures = sorted(columns, key=lambda each: (columns[each].test.title, *map(str, each)))
    rows = sorted(subjects, key=lambda each: (each[0], -each[1], each[2]))
    return EvaluationTableView(
        columns=[columns[each] for each in measures],
        rows=[TableRowView(backbone=subjects[row], cells=[cells[each].get(row) for each in measures]) for row in rows],
        left_out=left_out,
    )

"""Pages of evaluations: the table of backbones against measurements, the list, and one evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from service.dashboard.evaluation import FILTERS, WEIGHTS, Result, class_sorts, classes, place, result
from service.dashboard.site import EvaluationsPage, Page, PageRoute, environment
from service.evaluations import service
from service.evaluations.listing import SORT, Filters
from service.evaluations.schemas import (
    EvaluationScoreView,
    EvaluationSummaryView,
    EvaluationTableView,
    TableColumnView,
)
from service.http.problems import ApiProblem
from service.jobs.evaluation_schemas import ImagesView
from trainer.spec.measurements import TITLES, title

environment.filters.update(FILTERS)
router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
NEWEST: Final = "-finished_at"
"""What the list is sorted by at first."""
COLUMNS: Final = 6
"""Largest number of score columns in the list."""
CLASSES: Final = 200
"""Classes on one page."""
Found = TypeVar("Found")
Texts = Annotated[list[str] | None, Query(max_length=32)]
Text = Annotated[str | None, Query(max_length=2000)]


def _asked(
    read: Callable[[Filters], Found],
    texts: dict[str, str | None],
    protocol: Sequence[str] | None,
    label: Sequence[str] | None,
) -> tuple[Found | None, dict[str, Any]]:
    """What matches the filters, and what the form shows; a filter that cannot be used is told beside the others."""
    chosen = [each for each in protocol or () if each]
    labels = [each for each in label or () if each.strip()]
    given: dict[str, Any] = {name: text or None for name, text in texts.items()}
    context: dict[str, Any] = {
        "protocols": list(TITLES),
        "chosen": chosen,
        "filtered": bool(chosen or labels or any(given.values())),
        "wrong": None,
    }
    try:
        return read(Filters(**given, protocol=chosen, label=labels)), context
    except ApiProblem as problem:
        if {each.field for each in problem.problems}.isdisjoint({"backbone", "label"}):
            raise
        return None, context | {"wrong": problem.detail}


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnGroup:
    """Columns of one test: the same images for training and test."""

    train: ImagesView
    test: ImagesView
    held_out: float | None
    columns: int


@router.get("/evaluations")
def table(
    page: EvaluationsPage,
    backbone: Text = None,
    job: Text = None,
    dataset: Text = None,
    test: Text = None,
    protocol: Texts = None,
    owner: Text = None,
    label: Texts = None,
) -> Response:
    """Backbones against datasets and protocols."""
    texts = {"backbone": backbone, "job": job, "dataset": dataset, "test": test, "owner": owner}
    found, context = _asked(
        lambda filters: service.show_table(page.state, page.caller, filters), texts, protocol, label
    )
    shown = _in_order(found) if found else EvaluationTableView(columns=[], rows=[])
    groups = _groups(shown.columns)
    context["tests"] = dict.fromkeys(group.test.title for group in groups)
    context["starts"] = list(accumulate((group.columns for group in groups), initial=0))
    return page.render("evaluations/table.html", table=shown, groups=groups, weights=WEIGHTS, **context)


def _in_order(table: EvaluationTableView) -> EvaluationTableView:
    """The table with the columns of a test in the order of the protocols."""
    order = {each: number for number, each in enumerate(dict.fromkeys(map(_images, table.columns)))}
    columns = table.columns
    places = sorted(
        range(len(columns)),
        key=lambda at: (order[_images(columns[at])], *place(columns[at].protocol, columns[at].share)),
    )
    rows = [row.model_copy(update={"cells": [row.cells[at] for at in places]}) for row in table.rows]
    return table.model_copy(update={"columns": [columns[at] for at in places], "rows": rows})


def _images(column: TableColumnView) -> tuple[str, str, float | None]:
    """What columns of one test have in common."""
    return column.test.fingerprint, column.train.fingerprint, column.held_out


def _groups(columns: Sequence[TableColumnView]) -> list[ColumnGroup]:
    """The columns' groups, in their order: those of a group are neighbours."""
    found = []
    for _, group in groupby(columns, _images):
        first, *others = group
        found.append(ColumnGroup(first.train, first.test, first.held_out, 1 + len(others)))
    return found


# --- the list ---------------------------------------------------------------------------------------------------------


@router.get("/evaluations/list")
def listing(
    page: EvaluationsPage,
    backbone: Text = None,
    job: Text = None,
    dataset: Text = None,
    test: Text = None,
    protocol: Texts = None,
    owner: Text = None,
    label: Texts = None,
    sort: Annotated[str | None, Query(pattern=f"^({SORT})?$")] = None,
    cursor: str | None = None,
) -> Response:
    """Evaluations, the newest first unless they are sorted otherwise."""
    texts = {"backbone": backbone, "job": job, "dataset": dataset, "test": test, "owner": owner}
    found, context = _asked(
        lambda filters: service.page(page.state, page.caller, filters, sort or NEWEST, PAGE, cursor),
        texts,
        protocol,
        label,
    )
    items = found.items if found else []
    columns = _columns(items, (sort or "").removeprefix("-"))
    tests = dict.fromkeys(each.test.title for each in items)
    context |= {"columns": columns, "tests": tests, "sort": sort or NEWEST, "by_key": _by_key}
    return page.render("evaluations/list.html", found=found, **context)


def _columns(items: Sequence[EvaluationSummaryView], sorted_by: str) -> list[tuple[str, str]]:
    """The score keys that the list shows, each with its heading: the one it is sorted by, then the most frequent."""
    own = [score for each in items for score in each.scores if score.weights == "backbone"]
    counts = Counter(score.key for score in own)
    headings = {score.key: title(score.protocol, score.share) for score in own}
    keys = sorted(counts, key=lambda key: (key != sorted_by, -counts[key], key))[:COLUMNS]
    return [(key, headings[key]) for key in keys]


def _by_key(found: EvaluationSummaryView) -> dict[str, EvaluationScoreView]:
    return {score.key: score for score in found.scores}


# --- one --------------------------------------------------------------------------------------------------------------


def shown(page: Page, job_id: str) -> Result | None:
    """What an evaluation has found; None if its job has none, or it is of a backbone that the caller may not see."""
    try:
        view = service.show(page.state, page.caller, job_id)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        return None
    return result(job_id, view.evaluation, view.files)


@router.get("/evaluations/{job_id}")
def one(page: EvaluationsPage, job_id: str) -> Response:
    """One evaluation. Whoever sees its job is led to the job's page, which has all of it."""
    view = service.show(page.state, page.caller, job_id)
    if page.caller.sees(view.owner):
        return RedirectResponse(f"/jobs/{job_id}/overview", 303)
    found = result(job_id, view.evaluation, view.files)
    return page.render("evaluations/one.html", charts=True, view=view, result=found)


@router.get("/evaluations/{job_id}/classes")
def of_classes(
    page: EvaluationsPage, job_id: str, sort: str | None = None, start: Annotated[int, Query(ge=0, le=10**6)] = 0
) -> Response:
    """How well each class is predicted, by default the worst first."""
    view = service.show(page.state, page.caller, job_id)
    allowed = class_sorts(view.evaluation)
    if sort and sort not in allowed:
        raise ApiProblem(422, "parameter_invalid", f"sort: {sort!r} is not known: use one of {', '.join(allowed)}")
    found = result(job_id, view.evaluation, view.files)
    by_default = found.class_scores[0].key if found.class_scores else "class"
    table = classes(view.evaluation, sort)
    context: dict[str, Any] = {"view": view, "result": found, "sort": sort or by_default}
    context["after"] = start + CLASSES if len(table) > start + CLASSES else None
    return page.render("evaluations/classes.html", classes=table[start : start + CLASSES], **context)

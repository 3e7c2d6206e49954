"""Pages of searches: the list, one search with its tabs, a comparison of trials, and one trial."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from service.dashboard.formatting import number as rounded
from service.dashboard.site import WITH_CURVES, ControlPage, JobsPage, Page, PageRoute, environment
from service.http.problems import ApiProblem
from service.jobs import reading as jobs
from service.jobs import service as changing
from service.jobs.listing import Filters
from service.jobs.output_schemas import ImageView
from service.jobs.schemas import JobView, SearchProgress, TrialCounts
from service.jobs.state import State
from service.searches import analysis as trial_analysis
from service.searches import reading
from service.searches.reading import Search
from service.searches.routes import LAST_TRIAL, SORTS, Number
from service.searches.schemas import Difference, SearchView, TrialDetail, TrialState
from trainer.protocol import names
from trainer.spec import metric_keys, yaml_text
from trainer.spec.job import Kind
from trainer.spec.space import CategoricalParameter

router = APIRouter(include_in_schema=False, route_class=PageRoute)
environment.globals["colour"] = trial_analysis.colour

Chosen = Annotated[int, Field(ge=0, le=LAST_TRIAL)]
TABS: Final = ("overview", "trials", "analysis", "logs", "config")
PAGE: Final = 50
COMPARED: Final = (2, 6)
"""Least and most trials that can be compared."""
PRUNED: Final = "#c26a08"
"""The colour of pruned trials, in both themes."""
CURVES: Final[list[dict[str, Any]]] = [
    {"title": "Loss", "keys": [metric_keys.LOSS]},
    {"title": "Linear probe, top 1", "keys": [metric_keys.LINEAR_TOP1]},
    {"title": "k-NN, top 1", "keys": [metric_keys.KNN_TOP1]},
    {"title": "Reconstruction ratio", "keys": [metric_keys.RECONSTRUCTION_RATIO]},
    {"title": "Learning rate", "keys": [metric_keys.LEARNING_RATE]},
    {"title": "Teacher momentum", "keys": [metric_keys.TEACHER_MOMENTUM]},
    {"title": "Gradient norm", "keys": [metric_keys.GRAD_NORM], "log": True},
]
"""Charts of each trial; those of the objectives come before them."""


# --- the list ---------------------------------------------------------------------------------------------------------


@router.get("/searches")
def listing(
    page: JobsPage,
    state: Annotated[list[State] | None, Query()] = None,
    owner: str | None = None,
    label: Annotated[str | None, Query(max_length=400)] = None,
    name_contains: str | None = None,
    cursor: str | None = None,
) -> Response:
    """All searches that the caller sees, newest first."""
    labels = (label,) if label else ()
    filters = Filters(state or (), Kind.SEARCH, owner or None, labels, name_contains or None, visible_to=page.caller)
    found = jobs.listing(page.state, filters, PAGE, cursor)
    filtered = bool(state or owner or label or name_contains)
    return page.render("searches/list.html", found=found, states=list(State), chosen=state or [], filtered=filtered)


# --- one search -------------------------------------------------------------------------------------------------------


def _search(page: Page, template: str, job: JobView, tab: str, *, charts: bool = False, **context: Any) -> Response:
    """A page of a search, with its header. ``search`` is None if its trials cannot be read; ``trouble`` says why."""
    if "search" not in context:
        context["search"], context["trouble"] = page.attempt(lambda: reading.show(page.state, page.caller, job.id))
    search: SearchView | None = context["search"]
    counts = (
        search.trials if search else job.progress.trials if isinstance(job.progress, SearchProgress) else TrialCounts()
    )
    context |= {"running": counts.running, "ended": counts.ended}
    offered = page.offered(job) - ({"stop"} if search and search.draining else set())
    return page.render(template, charts=charts, job=job, tab=tab, tabs_=TABS, offered=offered, **context)


def _job(page: Page, search_id: str) -> JobView:
    """A search's job. Raises the API's 404, and 409 for a job of another kind."""
    job = jobs.show(page.state, page.caller, search_id)
    if job.kind != Kind.SEARCH:
        raise ApiProblem(409, "not_for_this_kind", f"{job.id} is a {job.kind} job, not a search: see /jobs/{job.id}")
    return job


@router.get("/searches/{search_id}/overview")
def overview(page: JobsPage, search_id: str) -> Response:
    """The best trial, the progress, and plots of the search so far."""
    job = _job(page, search_id)
    search, trouble = page.attempt(lambda: reading.show(page.state, page.caller, search_id))
    best = search.best[0] if search and search.best else None
    detail, picture = None, None
    if best:
        detail = reading.detail(page.state, page.caller, search_id, best.number)
        picture, _ = page.attempt(lambda: _newest_picture(page, search_id, best.number))
    context = {"search": search, "trouble": trouble, "best": detail, "picture": picture}
    context["best_spec_yaml"] = yaml_text.dump(detail.spec) if detail else ""
    return _search(page, "searches/overview.html", job, "overview", charts=True, **context)


def _newest_picture(page: Page, search_id: str, number: int) -> ImageView | None:
    found = reading.images(page.state, page.caller, search_id, number).items
    return found[-1] if found else None


def _chosen(trial: Annotated[list[str] | None, Query()] = None) -> None:
    """The chosen rows, which tables.js keeps in the address."""
    del trial


@router.get("/searches/{search_id}/trials", dependencies=[Depends(_chosen)])
def trials(
    page: JobsPage,
    search_id: str,
    state: Annotated[list[TrialState] | None, Query()] = None,
    sort: Annotated[str, Query(pattern=SORTS)] = reading.NEWEST_FIRST,
    cursor: str | None = None,
) -> Response:
    """All trials, with pagination; the best one stays on top."""
    job = _job(page, search_id)

    def read() -> tuple[SearchView, Any]:
        search = reading.show(page.state, page.caller, search_id)
        return search, reading.listing(page.state, page.caller, search_id, state or (), sort, PAGE, cursor)

    found, trouble = page.attempt(read)
    search, listed = found or (None, None)
    pinned = search.best[0] if search and search.best and (not state or search.best[0].state in state) else None
    context: dict[str, Any] = {"search": search, "trouble": trouble, "listed": listed, "pinned": pinned, "sort": sort}
    context |= {"states": list(TrialState), "chosen": state or []}
    return _search(page, "searches/trials.html", job, "trials", **context)


@router.get("/searches/{search_id}/analysis")
def analysis(page: JobsPage, search_id: str, first: str | None = None, second: str | None = None) -> Response:
    """How the parameters affect the objective. ``first`` and ``second`` are the axes of the contour plot."""
    job = _job(page, search_id)
    paths = list(job.spec["space"])
    for name, path in (("first", first), ("second", second)):
        if path is not None and path not in paths:
            text = f"{name}: {path!r} is not a parameter of this search: use one of {', '.join(paths)}"
            raise ApiProblem(422, "parameter_invalid", text)
    first = first or paths[0]
    second = second or next((path for path in paths if path != first), first)
    return _search(page, "searches/analysis.html", job, "analysis", charts=True, paths=paths, pair=(first, second))


@router.get("/searches/{search_id}/logs")
def logs(page: JobsPage, search_id: str) -> Response:
    """The driver's log. Each trial has a log of its own on its page."""
    job = _job(page, search_id)
    attempts = jobs.attempts(page.state, page.caller, search_id).items
    return _search(page, "searches/logs.html", job, "logs", attempts=attempts)


@router.get("/searches/{search_id}/config")
def config(page: JobsPage, search_id: str) -> Response:
    """The submitted spec."""
    job = _job(page, search_id)
    return _search(page, "searches/config.html", job, "config", spec_yaml=yaml_text.dump(job.spec))


@router.get("/searches/{search_id}/delete")
def delete(page: ControlPage, search_id: str) -> Response:
    """What the deletion of a search removes, to confirm."""
    job = _job(page, search_id)
    deletion = changing.deletion(page.state, page.caller, search_id)
    return _search(page, "searches/delete.html", job, "", deletion=deletion)


# --- several trials, and one ------------------------------------------------------------------------------------------


@router.get("/searches/{search_id}/compare", dependencies=WITH_CURVES)
def compare(page: JobsPage, search_id: str, trial: Annotated[list[Chosen] | None, Query()] = None) -> Response:
    """Two to six trials: their differences, and their curves and pictures side by side."""
    job, numbers = _job(page, search_id), list(dict.fromkeys(trial or ()))
    least, most = COMPARED
    chosen = least <= len(numbers) <= most
    found, trouble = page.attempt(lambda: Search.load(page.state, page.caller, search_id)) if chosen else (None, None)
    context: dict[str, Any] = {"numbers": numbers, "compared": None}
    if found:
        views = found.views(page.state, page.caller, [found.trial(number) for number in numbers])
        paths = list(found.spec.space)
        differ = [path for path in paths if any(each.params.get(path) != views[0].params.get(path) for each in views)]
        context["compared"] = {
            "views": views,
            "differ": differ,
            "same": {path: views[0].params.get(path) for path in paths if path not in differ},
            "best": _best_of(found, numbers),
            "pictures": {number: page.attempt(partial(_pictures, page, search_id, number)) for number in numbers},
        }
        context |= _curves(found, search_id, numbers)
    return _search(page, "searches/compare.html", job, "compare", charts=True, compare_trouble=trouble, **context)


def _best_of(found: Search, numbers: Sequence[int]) -> int | None:
    """The trial with the best first objective; None if none has a value."""
    costs = {number: trial_analysis.costs(found.trial(number), found.spec) for number in numbers}
    known = {number: cost[0] for number, cost in costs.items() if cost}
    return min(known, key=lambda number: known[number]) if known else None


def _pictures(page: Page, search_id: str, number: int) -> list[ImageView]:
    return reading.images(page.state, page.caller, search_id, number).items


def _curves(found: Search, search_id: str, numbers: Sequence[int]) -> dict[str, Any]:
    """The curves of some trials, each in its own colour, for charts.js."""
    objectives = [each.metric for each in found.spec.objectives]
    charted = {key for chart in CURVES for key in chart["keys"]}
    charts = [{"title": metric, "keys": [metric]} for metric in objectives if metric not in charted] + CURVES
    runs = [
        {
            "id": number,
            "label": f"trial {number}",
            "url": f"/v1/searches/{search_id}/trials/{number}/metrics",
            "colour": trial_analysis.colour(number),
        }
        for number in numbers
    ]
    return {"curves": runs, "figures": sorted(charts, key=lambda chart: chart["keys"][0] not in objectives)}


@router.get("/searches/{search_id}/trials/{number}", dependencies=WITH_CURVES)
def trial(page: JobsPage, search_id: str, number: Number) -> Response:
    """One trial: its parameters, its results, and how it compares with the others."""
    job = _job(page, search_id)

    def read() -> tuple[Search, TrialDetail, SearchView]:
        found = Search.load(page.state, page.caller, search_id)
        found.trial(number)
        detail = reading.detail(page.state, page.caller, search_id, number)
        return found, detail, reading.show(page.state, page.caller, search_id)

    result, trouble = page.attempt(read)
    context: dict[str, Any] = {"number": number, "search": None, "trouble": trouble, "detail": None}
    if result:
        found, detail, search = result
        pictures, no_pictures = page.attempt(lambda: _pictures(page, search_id, number))
        context |= {
            "search": search,
            "detail": detail,
            "spec_yaml": yaml_text.dump(detail.spec) if detail.spec else "",
            "differences": {path: _difference(found, path, each) for path, each in detail.difference.items()},
            "figure": _comparison_figure(found, detail),
            "repeats": [each.number for each in found.trials if trial_analysis.repeat_of(each) == number],
            "retries": [each.number for each in found.trials if each.user_attrs.get(names.TRIAL_RETRY_OF) == number],
            "pictures": pictures,
            "no_pictures": no_pictures,
            "workers": _workers(detail),
        } | _curves(found, search_id, [number])
    return _search(page, "searches/trial.html", job, "trial", charts=True, **context)


def _workers(detail: TrialDetail) -> int:
    """The number of workers whose lines are in the trial's log; 0 if it is not known yet."""
    workers = detail.spec.get("resources", {}).get("workers")
    return workers if isinstance(workers, int) else 0


def _difference(found: Search, path: str, each: Difference) -> str:
    """How a value differs from the best trial's: the difference, or the factor on a logarithmic scale."""
    own, best = each.value, each.best
    parameter = found.spec.space[path]
    if (
        isinstance(parameter, CategoricalParameter)
        or not isinstance(own, int | float)
        or not isinstance(best, int | float)
    ):
        return ""
    if parameter.log:
        return f"×{rounded(own / best)}"
    return f"{'+' if own > best else '−'}{rounded(abs(own - best))}"


def _comparison_figure(found: Search, detail: TrialDetail) -> dict[str, Any]:
    """A figure for plotly.js: the first objective at each evaluation against the median of the other trials."""
    others: dict[int, list[float]] = {}
    for each in found.trials:
        if each.number != detail.number:
            for epoch, value in each.intermediate_values.items():
                if math.isfinite(value):
                    others.setdefault(epoch, []).append(value)
    if not detail.intermediate:
        return {
            "data": [],
            "layout": {},
            "note": "It has no value yet." if not detail.state.ended else "It has no value.",
        }
    epochs = sorted(others)
    own = [(each.epoch, each.value) for each in detail.intermediate]
    data: list[dict[str, Any]] = [
        {
            "name": "median of the others",
            "x": epochs,
            "y": [statistics.median(others[epoch]) for epoch in epochs],
            "mode": "lines",
            "line": {"color": "#7d8796", "dash": "dash"},
        },
        {
            "name": f"trial {detail.number}",
            "x": [epoch for epoch, _ in own],
            "y": [value for _, value in own],
            "mode": "lines+markers",
            "line": {"color": trial_analysis.colour(detail.number)},
        },
    ]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": found.spec.objectives[0].metric}},
    }
    if detail.state is TrialState.PRUNED:
        at = own[-1][0]
        line = {"color": PRUNED, "dash": "dot"}
        layout["shapes"] = [{"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}]
        layout["annotations"] = [
            {"x": at, "yref": "paper", "y": 1, "text": detail.state_in_words, "showarrow": False, "xanchor": "right"}
            | {"font": {"color": PRUNED}}
        ]
    return {"data": data, "layout": layout, "note": None}

"""Searches: the list, one with its tabs, and one trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

import yaml
from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from service.dashboard.site import Page, PageDep, PageRoute, environment
from service.errors import TOLD, ApiProblem
from service.jobs import reading as jobs
from service.jobs import service as changing
from service.jobs.lifecycle import EFFECTS, Effect, Verb
from service.jobs.repository import Filters
from service.jobs.schemas import ImageView, JobView, SearchProgress, State, TrialCounts
from service.searches import reading
from service.searches import trials as made
from service.searches.checks import SEARCH
from service.searches.routes import SORTS
from service.searches.schemas import SearchView, TrialState
from trainer.spec import names

router = APIRouter(include_in_schema=False, route_class=PageRoute)
environment.globals["colour"] = made.colour

Found = TypeVar("Found")
TABS: Final = ("overview", "trials", "analysis", "logs", "config")
PAGE: Final = 50
COMPARED: Final = (2, 6)
"""Trials that can be told apart side by side."""
CURVES: Final[list[dict[str, Any]]] = [
    {"title": "Loss", "keys": [names.LOSS]},
    {"title": "Linear probe, top 1", "keys": [names.LINEAR_TOP1]},
    {"title": "Reconstruction ratio", "keys": [names.RECONSTRUCTION_RATIO]},
    {"title": "Learning rate", "keys": [names.LEARNING_RATE]},
    {"title": "Teacher momentum", "keys": [names.TEACHER_MOMENTUM]},
    {"title": "Gradient norm", "keys": [names.GRAD_NORM], "log": True},
]
"""Of each trial; the objectives' own come before them."""


def _tried(read: Callable[[], Found]) -> tuple[Found | None, str | None]:
    """What is read, or why that cannot be now: the rest of the page stands without it."""
    try:
        return read(), None
    except tuple(TOLD) as error:
        told = next(TOLD[kind] for kind in type(error).__mro__ if kind in TOLD)
        problem: ApiProblem = told(error)
        if problem.status != 503 and problem.code != "artifacts_not_here":
            raise
        return None, problem.detail


# --- the list ---------------------------------------------------------------------------------------------------------


@router.get("/searches")
def listing(
    page: PageDep,
    state: Annotated[list[State] | None, Query()] = None,
    owner: str | None = None,
    label: Annotated[str | None, Query(max_length=400)] = None,
    name_contains: str | None = None,
    cursor: str | None = None,
) -> Response:
    """All searches that one sees, the newest first."""
    labels = (label,) if label else ()
    filters = Filters(state or (), SEARCH, owner or None, labels, name_contains or None, seen_by=page.caller)
    found = jobs.listing(page.parts, filters, PAGE, cursor)
    filtered = bool(state or owner or label or name_contains)
    return page.render("searches/list.html", found=found, states=list(State), chosen=state or [], filtered=filtered)


# --- one search -------------------------------------------------------------------------------------------------------


def _offered(page: Page, job: JobView) -> set[str]:
    """What this caller may do with a search, as its state allows."""
    if not page.controls(job.owner):
        return set()
    return {verb.value for verb in Verb if EFFECTS[verb][job.state] not in {Effect.REFUSED, Effect.SAME}}


def _search(page: Page, template: str, job: JobView, tab: str, *, charts: bool = False, **context: Any) -> Response:
    """A page of a search, with its head; ``search`` is None where its trials cannot be read, ``trouble`` says why."""
    if "search" not in context:
        context["search"], context["trouble"] = _tried(lambda: reading.show(page.parts, page.caller, job.id))
    search: SearchView | None = context["search"]
    counts = (
        search.trials if search else job.progress.trials if isinstance(job.progress, SearchProgress) else TrialCounts()
    )
    context |= {"running": counts.running, "ended": counts.ended}
    offered = _offered(page, job) - ({"stop"} if search and search.draining else set())
    return page.render(template, charts=charts, job=job, tab=tab, tabs_=TABS, offered=offered, **context)


def _job(page: Page, search_id: str) -> JobView:
    """Raises the API's 404, also for jobs of another kind."""
    job = jobs.show(page.parts, page.caller, search_id)
    if job.kind != SEARCH:
        raise ApiProblem(404, "search_not_found", f"{job.id} is a {job.kind} job, and no search: see /jobs/{job.id}")
    return job


@router.get("/searches/{search_id}")
def one(page: PageDep, search_id: str) -> Response:
    """Leads to its first tab; a job of another kind has a page of its own."""
    kind = jobs.show(page.parts, page.caller, search_id).kind
    return RedirectResponse(f"/{'searches' if kind == SEARCH else 'jobs'}/{search_id}/overview", 303)


@router.get("/searches/{search_id}/overview")
def overview(page: PageDep, search_id: str) -> Response:
    """What is best, how far it is, and what shows how it got there."""
    job = _job(page, search_id)
    search, trouble = _tried(lambda: reading.show(page.parts, page.caller, search_id))
    best = search.best[0] if search and search.best else None
    detail, picture = None, None
    if best:
        detail = reading.detail(page.parts, page.caller, search_id, best.number)
        picture, _ = _tried(lambda: _newest_picture(page, search_id, best.number))
    context = {"search": search, "trouble": trouble, "best": detail, "picture": picture}
    context["best_written"] = _yaml(detail.spec) if detail else ""
    return _search(page, "searches/overview.html", job, "overview", charts=True, **context)


def _newest_picture(page: Page, search_id: str, number: int) -> ImageView | None:
    found = reading.images(page.parts, page.caller, search_id, number).items
    return found[-1] if found else None


@router.get("/searches/{search_id}/trials")
def trials(
    page: PageDep,
    search_id: str,
    state: Annotated[list[TrialState] | None, Query()] = None,
    sort: Annotated[str, Query(pattern=SORTS)] = reading.NEWEST_FIRST,
    cursor: str | None = None,
) -> Response:
    """All trials, a page at a time; the best one stays on top."""
    job = _job(page, search_id)

    def read() -> tuple[SearchView, Any]:
        search = reading.show(page.parts, page.caller, search_id)
        return search, reading.listing(page.parts, page.caller, search_id, state or (), sort, PAGE, cursor)

    found, trouble = _tried(read)
    search, listed = found or (None, None)
    pinned = search.best[0] if search and search.best and (not state or search.best[0].state in state) else None
    context = {"search": search, "trouble": trouble, "listed": listed, "pinned": pinned, "sort": sort}
    return _search(page, "searches/trials.html", job, "trials", states=list(TrialState), chosen=state or [], **context)


@router.get("/searches/{search_id}/analysis")
def analysis(page: PageDep, search_id: str, first: str | None = None, second: str | None = None) -> Response:
    """What the parameters do to the objective. ``first`` and ``second`` are the contour's axes."""
    job = _job(page, search_id)
    paths = list(job.spec["space"])
    for name, path in (("first", first), ("second", second)):
        if path is not None and path not in paths:
            text = f"{name}: {path!r} is no parameter: there are {', '.join(paths)}"
            raise ApiProblem(422, "parameter_invalid", text)
    first = first or paths[0]
    second = second or next((path for path in paths if path != first), first)
    return _search(page, "searches/analysis.html", job, "analysis", charts=True, paths=paths, pair=(first, second))


@router.get("/searches/{search_id}/logs")
def logs(page: PageDep, search_id: str) -> Response:
    """The driver's own log; each trial has one of its own."""
    return _search(page, "searches/logs.html", _job(page, search_id), "logs")


@router.get("/searches/{search_id}/config")
def config(page: PageDep, search_id: str) -> Response:
    """What was submitted."""
    job = _job(page, search_id)
    return _search(page, "searches/config.html", job, "config", written=_yaml(job.spec))


def _yaml(document: Any) -> str:
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return text


@router.get("/searches/{search_id}/delete")
def delete(page: PageDep, search_id: str) -> Response:
    """What would go with a search, before it goes."""
    job = _job(page, search_id)
    going = changing.deletion(page.parts, page.caller, search_id)
    return _search(page, "searches/delete.html", job, "", going=going)

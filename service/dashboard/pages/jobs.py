"""Jobs: the list, one with its tabs, and several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from service.dashboard.shown import flat, number
from service.dashboard.site import Page, PageDep, PageRoute, environment, written
from service.http.problems import ApiProblem
from service.jobs import reading
from service.jobs import service as changing
from service.jobs.repository import Filters
from service.jobs.schemas import ImageView, JobView, State
from trainer.spec import metric_keys
from trainer.spec.job import Kind

router = APIRouter(include_in_schema=False, route_class=PageRoute)

TABS: Final = {
    Kind.PRETRAIN: ("overview", "metrics", "images", "logs", "checkpoints", "events", "spec"),
    "publish": ("overview", "logs", "events", "spec"),
}
"""Of each kind; what a kind has no use for is absent."""
PAGE: Final = 50
EVENTS: Final = 200
COMPARED: Final = (2, 6)
"""Jobs that can be told apart side by side."""
LOSSES: Final[dict[str, Any]] = {
    "title": "Loss",
    "keys": [metric_keys.LOSS, metric_keys.LOSS_RECONSTRUCTION, metric_keys.LOSS_CONSISTENCY],
}
RATIO: Final[dict[str, Any]] = {"title": "Reconstruction ratio", "keys": [metric_keys.RECONSTRUCTION_RATIO]}
PROBE: Final[dict[str, Any]] = {
    "title": "Linear probe, top 1",
    "keys": [metric_keys.LINEAR_TOP1, metric_keys.LINEAR_TOP1_RANDOM_INIT],
}
CURVES: Final[list[dict[str, Any]]] = [
    LOSSES,
    RATIO,
    PROBE,
    {"title": "Learning rate", "keys": [metric_keys.LEARNING_RATE]},
    {"title": "Teacher momentum", "keys": [metric_keys.TEACHER_MOMENTUM]},
    {"title": "Gradient norm", "keys": [metric_keys.GRAD_NORM], "log": True},
    {"title": "Throughput", "keys": [metric_keys.IMAGES_PER_S], "unit": "images/s"},
    {"title": "Share of time that waits for data", "keys": [metric_keys.DATA_WAIT_FRACTION]},
]
COLOURS: Final = ("#3b7ddd", "#d9822b", "#2f9e5f", "#c5408f", "#7a5bd6", "#129aa8")
"""Of jobs that are compared, in their order."""


# --- the list ---------------------------------------------------------------------------------------------------------


@router.get("/jobs")
def listing(
    page: PageDep,
    state: Annotated[list[State] | None, Query()] = None,
    kind: Kind | None = None,
    owner: str | None = None,
    label: Annotated[str | None, Query(max_length=400)] = None,
    name_contains: str | None = None,
    cursor: str | None = None,
) -> Response:
    """All jobs that one sees, the newest first."""
    labels = (label,) if label else ()
    filters = Filters(state or (), kind, owner or None, labels, name_contains or None, visible_to=page.caller)
    found = reading.listing(page.parts, filters, PAGE, cursor)
    filtered = bool(state or kind or owner or label or name_contains)
    context: dict[str, Any] = {"states": list(State), "chosen": state or [], "kinds": list(Kind), "kind": kind}
    return page.render("jobs/list.html", found=found, filtered=filtered, **context)


# --- several ----------------------------------------------------------------------------------------------------------


@router.get("/jobs/compare")
def compare(page: PageDep, job: Annotated[list[str] | None, Query(max_length=50)] = None) -> Response:
    """Two to six jobs: what differs, and their curves and pictures side by side."""
    ids = list(dict.fromkeys(job or ()))
    least, most = COMPARED
    context: dict[str, Any] = {"ids": ids, "found": []}
    if least <= len(ids) <= most:
        found = [reading.show(page.parts, page.caller, each) for each in ids]
        for each in found:
            if each.kind != Kind.PRETRAIN:
                text = f"job: {each.id} is a {each.kind} job: choose pretraining jobs to compare"
                raise ApiProblem(422, "parameter_invalid", text)
        specs = [flat(each.spec) for each in found]
        paths = list(dict.fromkeys(path for spec in specs for path in spec))
        differ = [path for path in paths if any(spec.get(path) != specs[0].get(path) for spec in specs)]
        results = list(dict.fromkeys(key for each in found if each.result for key in each.result.metrics))
        context |= {
            "found": found,
            "specs": specs,
            "differ": [path for path in differ if path != "name"],
            # A part that is null in one has paths of its own in another, which differ: it is no row beside them.
            "same": {path: specs[0][path] for path in paths if path not in differ and all(path in s for s in specs)},
            "results": results,
            "colours": COLOURS,
            "pictures": [page.attempt(partial(_pictures, page, each.id)) for each in found],
            "curves": [_run(each, COLOURS[place]) for place, each in enumerate(found)],
            "figures": CURVES,
            "ended": all(each.state.terminal for each in found),
        }
    return page.render("jobs/compare.html", charts=True, **context)


def _run(job: JobView, colour: str) -> dict[str, str]:
    """What charts.js is to draw of a job."""
    return {"id": job.id, "label": job.name, "url": f"/v1/jobs/{job.id}/metrics", "colour": colour}


def taken_at(picture: ImageView) -> str:
    """When a picture was made, as people count."""
    return f"step {picture.step}" if picture.epoch is None else f"epoch {number(picture.epoch)}, step {picture.step}"


def pictures_json(found: Sequence[ImageView]) -> str:
    """For pictures.js: the step and the address of each, and how it is called."""
    return json.dumps([[each.step, each.url, taken_at(each)] for each in found])


environment.filters |= {"pictures_json": pictures_json, "taken_at": taken_at}


def _pictures(page: Page, job_id: str) -> list[ImageView]:
    return reading.images(page.parts, page.caller, job_id).items


# --- one --------------------------------------------------------------------------------------------------------------


def _job(page: Page, job_id: str, tab: str) -> JobView:
    """Raises the API's 404, also for a tab that its kind does not have."""
    job = reading.show(page.parts, page.caller, job_id)
    if job.kind == Kind.SEARCH or tab not in TABS[job.kind]:
        raise ApiProblem(404, "not_found", f"there is no page {page.path}")
    return job


def _show(page: Page, template: str, job: JobView, tab: str, *, charts: bool = False, **context: Any) -> Response:
    context |= {"curves": [_run(job, COLOURS[0])], "ended": job.state.terminal}
    context |= {"tabs_": TABS[job.kind], "offered": page.offered(job), "pretrains": job.kind == Kind.PRETRAIN}
    return page.render(template, charts=charts, job=job, tab=tab, **context)


@router.get("/jobs/{job_id}")
@router.get("/searches/{job_id}")
def one(page: PageDep, job_id: str) -> Response:
    """Leads to its first tab; searches have pages of their own."""
    kind = reading.show(page.parts, page.caller, job_id).kind
    return RedirectResponse(f"/{'searches' if kind == Kind.SEARCH else 'jobs'}/{job_id}/overview", 303)


@router.get("/jobs/{job_id}/overview")
def overview(page: PageDep, job_id: str) -> Response:
    """How far it is, how well it learns, and how its attempts went."""
    job = _job(page, job_id, "overview")
    pictures, no_pictures = (
        page.attempt(partial(_pictures, page, job_id)) if job.kind == Kind.PRETRAIN else (None, None)
    )
    attempts = reading.attempts(page.parts, page.caller, job_id).items
    context = {"picture": pictures[-1] if pictures else None, "no_pictures": no_pictures, "attempts": attempts}
    figures = [LOSSES, RATIO, PROBE]
    return _show(page, "jobs/overview.html", job, "overview", charts=True, figures=figures, **context)


@router.get("/jobs/{job_id}/metrics")
def metrics(page: PageDep, job_id: str) -> Response:
    """Every curve."""
    job = _job(page, job_id, "metrics")
    newest = job.result.metrics if job.result else {}
    further = sorted({key for key in newest if key.startswith(("diag/", "eval/"))} - _drawn())
    figures = CURVES + [{"title": key, "keys": [key]} for key in further]
    return _show(page, "jobs/metrics.html", job, "metrics", charts=True, figures=figures)


def _drawn() -> set[str]:
    return {key for chart in CURVES for key in chart["keys"]}


@router.get("/jobs/{job_id}/images")
def images(page: PageDep, job_id: str) -> Response:
    """Reconstructions by step."""
    job = _job(page, job_id, "images")
    pictures, trouble = page.attempt(partial(_pictures, page, job_id))
    return _show(page, "jobs/images.html", job, "images", pictures=pictures, trouble=trouble)


@router.get("/jobs/{job_id}/logs")
def logs(page: PageDep, job_id: str) -> Response:
    """What its driver and workers have logged."""
    job = _job(page, job_id, "logs")
    attempts = reading.attempts(page.parts, page.caller, job_id).items
    return _show(page, "jobs/logs.html", job, "logs", attempts=attempts)


@router.get("/jobs/{job_id}/checkpoints")
def checkpoints(page: PageDep, job_id: str) -> Response:
    """What a later attempt can go on from, and what can be published."""
    job = _job(page, job_id, "checkpoints")
    found, trouble = page.attempt(lambda: reading.checkpoints(page.parts, page.caller, job_id).items)
    return _show(page, "jobs/checkpoints.html", job, "checkpoints", found=found, trouble=trouble)


@router.get("/jobs/{job_id}/events")
def events(page: PageDep, job_id: str, cursor: str | None = None) -> Response:
    """What happened to it, the first at the top."""
    job = _job(page, job_id, "events")
    found = reading.events(page.parts, page.caller, job_id, cursor, EVENTS)
    return _show(page, "jobs/events.html", job, "events", found=found)


@router.get("/jobs/{job_id}/spec")
def spec(page: PageDep, job_id: str) -> Response:
    """What it runs."""
    job = _job(page, job_id, "spec")
    return _show(page, "jobs/spec.html", job, "spec", text=written(job.spec))


@router.get("/jobs/{job_id}/delete")
def delete(page: PageDep, job_id: str) -> Response:
    """What would go with a job, before it goes."""
    job = _job(page, job_id, "overview")
    going = changing.deletion(page.parts, page.caller, job_id)
    return _show(page, "jobs/delete.html", job, "", going=going)

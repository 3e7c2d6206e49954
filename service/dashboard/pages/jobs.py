"""Pages of jobs: the list, one job with its tabs, and a comparison of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import RedirectResponse

from service.dashboard import training_curves
from service.dashboard.embedding_code import reading_code
from service.dashboard.formatting import number
from service.dashboard.pages import evaluations
from service.dashboard.site import WITH_CURVES, ControlPage, JobsPage, Page, PageRoute, environment
from service.http.json_text import flat
from service.http.problems import ApiProblem
from service.jobs import reading
from service.jobs import service as changing
from service.jobs.listing import Filters
from service.jobs.output_schemas import ImageView
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.protocol import names
from trainer.spec import metric_keys, yaml_text
from trainer.spec.job import Kind

router = APIRouter(include_in_schema=False, route_class=PageRoute)

TABS: Final[dict[str, tuple[str, ...]]] = {
    Kind.EVALUATE: ("overview", "metrics", "logs", "events", "spec"),
    Kind.PRETRAIN: ("overview", "metrics", "images", "logs", "checkpoints", "events", "spec"),
    Kind.EMBED: ("overview", "logs", "events", "spec"),
    Kind.IMPORT: ("overview", "logs", "events", "spec"),
    Kind.INSPECT: ("overview", "logs", "events", "spec"),
    Kind.PUBLISH: ("overview", "logs", "events", "spec"),
}
"""The tabs of each kind of job."""
PAGE: Final = 50
EVENTS: Final = 200
FILES: Final = 100
"""The most files of a job that its page names."""
COMPARED: Final = (2, 6)
"""Least and most jobs that can be compared."""
LOSSES: Final[dict[str, Any]] = {
    "title": "Loss",
    "keys": [metric_keys.LOSS, metric_keys.LOSS_RECONSTRUCTION, metric_keys.LOSS_CONSISTENCY],
}
RATIO: Final[dict[str, Any]] = {"title": "Reconstruction ratio", "keys": [metric_keys.RECONSTRUCTION_RATIO]}
PROBES: Final[list[dict[str, Any]]] = [
    {"title": "Linear probe, top 1", "keys": [metric_keys.LINEAR_TOP1, metric_keys.LINEAR_TOP1_RANDOM_INIT]},
    {"title": "k-NN, top 1", "keys": [metric_keys.KNN_TOP1, metric_keys.KNN_TOP1_RANDOM_INIT]},
]
CURVES: Final[list[dict[str, Any]]] = [
    LOSSES,
    RATIO,
    *PROBES,
    {"title": "Learning rate", "keys": [metric_keys.LEARNING_RATE]},
    {"title": "Teacher momentum", "keys": [metric_keys.TEACHER_MOMENTUM]},
    {"title": "Gradient norm", "keys": [metric_keys.GRAD_NORM], "log": True},
    {"title": "Throughput", "keys": [metric_keys.IMAGES_PER_S], "unit": "images/s"},
    {"title": "Share of time spent waiting for data", "keys": [metric_keys.DATA_WAIT_FRACTION]},
]
COLOURS: Final = ("#3b7ddd", "#d9822b", "#2f9e5f", "#c5408f", "#7a5bd6", "#129aa8")
"""Colours of compared jobs, in their order."""


# --- the list ---------------------------------------------------------------------------------------------------------


def _chosen(job: Annotated[list[str] | None, Query()] = None) -> None:
    """The chosen rows, which tables.js keeps in the address."""
    del job


@router.get("/jobs", dependencies=[Depends(_chosen)])
def listing(
    page: JobsPage,
    state: Annotated[list[State] | None, Query()] = None,
    kind: Kind | None = None,
    owner: str | None = None,
    label: Annotated[str | None, Query(max_length=400)] = None,
    name_contains: str | None = None,
    cursor: str | None = None,
) -> Response:
    """All jobs that the caller sees, newest first."""
    labels = (label,) if label else ()
    filters = Filters(state or (), kind, owner or None, labels, name_contains or None, visible_to=page.caller)
    found = reading.listing(page.state, filters, PAGE, cursor)
    filtered = bool(state or kind or owner or label or name_contains)
    context: dict[str, Any] = {"states": list(State), "chosen": state or [], "kinds": list(Kind), "kind": kind}
    return page.render("jobs/list.html", found=found, filtered=filtered, **context)


# --- several ----------------------------------------------------------------------------------------------------------


@router.get("/jobs/compare", dependencies=WITH_CURVES)
def compare(page: JobsPage, job: Annotated[list[str] | None, Query(max_length=50)] = None) -> Response:
    """Two to six jobs: their differences, and their curves and pictures side by side."""
    ids = list(dict.fromkeys(job or ()))
    least, most = COMPARED
    context: dict[str, Any] = {"ids": ids, "found": []}
    if least <= len(ids) <= most:
        found = [reading.show(page.state, page.caller, each) for each in ids]
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
            # A section that is null in one job has fields in another, which already differ: it gets no row of its own.
            "same": {path: specs[0][path] for path in paths if path not in differ and all(path in s for s in specs)},
            "results": results,
            "colours": COLOURS,
            "pictures": [page.attempt(partial(_pictures, page, each.id)) for each in found],
            "curves": [_curve(each, COLOURS[index]) for index, each in enumerate(found)],
            "figures": CURVES,
            "ended": all(each.state.terminal for each in found),
        }
    return page.render("jobs/compare.html", charts=True, **context)


def _curve(job: JobView, colour: str) -> dict[str, str]:
    """A job's curves, for charts.js."""
    return {"id": job.id, "label": job.name, "url": f"/v1/jobs/{job.id}/metrics", "colour": colour}


def picture_label(picture: ImageView) -> str:
    """The step and epoch of a picture, for people."""
    return f"step {picture.step}" if picture.epoch is None else f"epoch {number(picture.epoch)}, step {picture.step}"


def pictures_json(pictures: Sequence[ImageView]) -> str:
    """The step, the URL and the label of each picture, for pictures.js."""
    return json.dumps([[each.step, each.url, picture_label(each)] for each in pictures])


environment.filters |= {"pictures_json": pictures_json, "picture_label": picture_label}


def _pictures(page: Page, job_id: str) -> list[ImageView]:
    return reading.images(page.state, page.caller, job_id).items


# --- one --------------------------------------------------------------------------------------------------------------


def _job(page: Page, job_id: str, tab: str) -> JobView:
    """A job. Raises the API's 404, also if jobs of its kind do not have the tab."""
    job = reading.show(page.state, page.caller, job_id)
    if job.kind == Kind.SEARCH or tab not in _tabs(job):
        raise ApiProblem(404, "not_found", f"there is no page {page.path}")
    return job


def _tabs(job: JobView) -> Sequence[str]:
    """A job's tabs: an evaluation that trains nothing on batches has no curves."""
    tabs = TABS[job.kind]
    if job.kind == Kind.EVALUATE and not training_curves.drawn(job.spec):
        return [each for each in tabs if each != "metrics"]
    return tabs


def _show(page: Page, template: str, job: JobView, tab: str, *, charts: bool = False, **context: Any) -> Response:
    context |= {"curves": [_curve(job, COLOURS[0])], "ended": job.state.terminal}
    context |= {"tabs_": _tabs(job), "offered": page.offered(job), "pretrains": job.kind == Kind.PRETRAIN}
    return page.render(template, charts=charts, job=job, tab=tab, **context)


@router.get("/jobs/{job_id}")
@router.get("/searches/{job_id}")
def one(page: JobsPage, job_id: str) -> Response:
    """Redirects to the first tab of a job or search."""
    kind = reading.show(page.state, page.caller, job_id).kind
    return RedirectResponse(f"/{'searches' if kind == Kind.SEARCH else 'jobs'}/{job_id}/overview", 303)


@router.get("/jobs/{job_id}/overview", dependencies=WITH_CURVES)
def overview(page: JobsPage, job_id: str) -> Response:
    """The job's progress, newest curves and pictures, and attempts."""
    job = _job(page, job_id, "overview")
    pictures, no_pictures = (
        page.attempt(partial(_pictures, page, job_id)) if job.kind == Kind.PRETRAIN else (None, None)
    )
    left, no_files = (
        page.attempt(lambda: reading.files(page.state, page.caller, job_id, f"{names.EMBEDDINGS}/", FILES, None))
        if job.kind == Kind.EMBED
        else (None, None)
    )
    attempts = reading.attempts(page.state, page.caller, job_id).items
    found = job.result.inspection if job.result else None
    context: dict[str, Any] = {
        "picture": pictures[-1] if pictures else None,
        "no_pictures": no_pictures,
        "attempts": attempts,
        "found": found,
        "proposed": yaml_text.dump(found.proposed) if found else "",
        "sheet": names.SAMPLES_PICTURE,
        "left": left,
        "no_files": no_files,
        "reading_code": reading_code(job, str(page.request.base_url).rstrip("/")) if job.kind == Kind.EMBED else "",
        "result": evaluations.shown(page, job_id) if job.kind == Kind.EVALUATE and job.state.terminal else None,
    }
    figures = [LOSSES, RATIO, *PROBES]
    if job.kind == Kind.EVALUATE:
        figures = training_curves.figures(training_curves.drawn(job.spec), [training_curves.LOSS])
        context["axes"] = training_curves.AXES
    return _show(page, "jobs/overview.html", job, "overview", charts=True, figures=figures, **context)


@router.get("/jobs/{job_id}/metrics", dependencies=WITH_CURVES)
def metrics(page: JobsPage, job_id: str) -> Response:
    """All curves."""
    job = _job(page, job_id, "metrics")
    if job.kind == Kind.EVALUATE:
        of_trainings = training_curves.figures(training_curves.drawn(job.spec))
        left_out = training_curves.SEEDS if training_curves.more_seeds(job.spec) else None
        context: dict[str, Any] = {"figures": of_trainings, "axes": training_curves.AXES, "first_seeds": left_out}
        return _show(page, "jobs/metrics.html", job, "metrics", charts=True, **context)
    newest = job.result.metrics if job.result else {}
    others = sorted({key for key in newest if key.startswith(("diag/", "eval/"))} - _keys_with_chart())
    figures = CURVES + [{"title": key, "keys": [key]} for key in others]
    context = {"figures": figures, "axes": (), "first_seeds": None}
    return _show(page, "jobs/metrics.html", job, "metrics", charts=True, **context)


def _keys_with_chart() -> set[str]:
    return {key for chart in CURVES for key in chart["keys"]}


@router.get("/jobs/{job_id}/images")
def images(page: JobsPage, job_id: str) -> Response:
    """Reconstructions by step."""
    job = _job(page, job_id, "images")
    pictures, trouble = page.attempt(partial(_pictures, page, job_id))
    return _show(page, "jobs/images.html", job, "images", pictures=pictures, trouble=trouble)


@router.get("/jobs/{job_id}/logs")
def logs(page: JobsPage, job_id: str) -> Response:
    """The logs of the driver and the workers."""
    job = _job(page, job_id, "logs")
    attempts = reading.attempts(page.state, page.caller, job_id).items
    return _show(page, "jobs/logs.html", job, "logs", attempts=attempts)


@router.get("/jobs/{job_id}/checkpoints")
def checkpoints(page: JobsPage, job_id: str) -> Response:
    """Checkpoints, from which a later attempt can resume, and which can be published."""
    job = _job(page, job_id, "checkpoints")
    found, trouble = page.attempt(lambda: reading.checkpoints(page.state, page.caller, job_id).items)
    return _show(page, "jobs/checkpoints.html", job, "checkpoints", found=found, trouble=trouble)


@router.get("/jobs/{job_id}/events")
def events(page: JobsPage, job_id: str, cursor: str | None = None) -> Response:
    """The job's events, oldest first."""
    job = _job(page, job_id, "events")
    found = reading.events(page.state, page.caller, job_id, cursor, EVENTS)
    return _show(page, "jobs/events.html", job, "events", found=found)


@router.get("/jobs/{job_id}/spec")
def spec(page: JobsPage, job_id: str) -> Response:
    """The spec that the job runs."""
    job = _job(page, job_id, "spec")
    return _show(page, "jobs/spec.html", job, "spec", text=yaml_text.dump(job.spec))


@router.get("/jobs/{job_id}/delete")
def delete(page: ControlPage, job_id: str) -> Response:
    """What the deletion of a job removes, to confirm."""
    job = _job(page, job_id, "overview")
    deletion = changing.deletion(page.state, page.caller, job_id)
    return _show(page, "jobs/delete.html", job, "", deletion=deletion)

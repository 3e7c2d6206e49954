"""Pages that start a job or a search, with two views of the spec: a form and YAML.

The routes below `/forms` only convert one view into the other. Plans and submissions go to the REST API.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from service import examples
from service.auth.sessions import check_csrf
from service.dashboard.evaluateform import evaluate_form
from service.dashboard.site import JobsPage, Page, PageRoute, environment
from service.dashboard.specform import groups, pruned, searchable
from service.dashboard.subjectform import subject_form
from service.http.problems import ApiProblem, spec_problem
from service.http.routing import ApiRoute
from service.jobs import reading, repository
from service.searches import reading as searches
from service.searches.routes import LAST_TRIAL
from trainer.spec import yaml_text
from trainer.spec.base import Problem, SpecError, document_with_lines
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.measurements import score_keys
from trainer.spec.presets import PRESETS
from trainer.spec.ready_searches import READY, ready_search
from trainer.spec.search_sections import METRICS

router = APIRouter(include_in_schema=False, route_class=PageRoute)
forms = APIRouter(include_in_schema=False, route_class=ApiRoute)
"""Routes for scripts: their errors are the API's, not pages."""


def choices(values: Sequence[Any]) -> str:
    """Choices as they are typed into the form: separated by commas, or as JSON unless all are plain values."""
    plain = all(
        isinstance(each, int | float) or (isinstance(each, str) and each and "," not in each) for each in values
    )
    texts = [json.dumps(each) if isinstance(each, int | float) else each for each in values]
    return ", ".join(texts) if plain else json.dumps(list(values))


environment.filters["choices"] = choices
Kind = Literal["pretrain", "search", "evaluate", "embed"]
TITLES: Final[dict[str, str]] = {
    "pretrain": "Pretrain a backbone",
    "search": "Search for hyperparameters",
    "evaluate": "Evaluate a backbone",
    "embed": "Compute a backbone's features of images",
}
THINGS: Final[dict[str, str]] = {
    "pretrain": "the job",
    "search": "the search",
    "evaluate": "the evaluation",
    "embed": "the job",
}
LONGEST: Final = 500_000
"""Longest spec, in characters."""


def _first_job() -> dict[str, Any]:
    """A job that takes a minute on two cores, with built-in images."""
    return {**copy.deepcopy(examples.DIGITS), "name": "digits", "register_as": "digits", "labels": {}}


def _first_search() -> dict[str, Any]:
    base = _first_job() | {"evaluation": {"every_epochs": 5}, "resources": {"workers": 1, "cpus_per_worker": 1}}
    base.pop("register_as")
    base.pop("labels")
    return {
        **copy.deepcopy(examples.SEARCH),
        "name": "tune-digits",
        "base": base,
        "space": {
            "method.teacher.momentum": {"type": "float", "low": 0.9, "high": 0.9999},
            "optimization.base_lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        },
        "budget": {"trials": 8, "concurrency": 2},
    }


def _of(page: Page, job_id: str, kind: Kind) -> dict[str, Any]:
    """The spec of a job without its defaults. Raises the API's 404, and 409 for a job of another kind."""
    with page.state.database.read() as session:
        job = repository.visible_job(session, job_id, page.caller)
    if job.kind != kind:
        raise ApiProblem(409, "not_for_this_kind", f"{job_id} is a {job.kind} job: choose one of kind {kind}")
    return pruned(kind, job.spec)


def _proposed(page: Page, job_id: str) -> dict[str, Any]:
    """A pretraining spec with the settings that an inspection proposes; raises the API's 404, or 409 if it has none."""
    job = reading.show(page.state, page.caller, job_id)
    found = job.result.inspection if job.result else None
    if found is None:
        raise ApiProblem(409, "not_for_this_kind", f"{job_id} has inspected no dataset: choose another job")
    return {"kind": "pretrain", **copy.deepcopy(found.proposed)}


def fill(page: Page, kind: Kind, document: dict[str, Any], source: str) -> Response:
    """The page, filled with a spec."""
    context: dict[str, Any] = {
        "kind": kind,
        "title": TITLES[kind],
        "thing": THINGS[kind],
        "form": _form(kind, document) if page.submits else "",
        "text": yaml_text.dump(document),
        "source": source,
    }
    return page.render("starting/new.html", ready=READY, presets=list(PRESETS), **context)


def _form(kind: Kind, document: Mapping[str, Any]) -> str:
    """The fields of a spec as HTML."""
    if kind == "evaluate":
        return environment.get_template("evaluations/form.html").render(form=evaluate_form(document))
    base = document.get("base") if kind == "search" else None
    base = base if isinstance(base, Mapping) else {}
    evaluates = base.get("kind") == "evaluate"
    objective = document.get("objective") or {}
    space = document.get("space")
    return environment.get_template("starting/form.html").render(
        kind=kind,
        groups=groups(kind, document),
        base=groups("evaluate" if evaluates else "pretrain", base, "base.") if kind == "search" else [],
        space=space if isinstance(space, Mapping) else {},
        objectives=objective if isinstance(objective, list) else [objective],
        metrics=_scores(base) if evaluates else METRICS,
        paths=searchable() if kind == "search" and not evaluates else [],
        presets=list(PRESETS),
        subject=subject_form(document) if kind == "embed" else None,
    )


def _scores(base: Mapping[str, Any]) -> list[str]:
    """What a search may seek whose trials are evaluations; nothing as long as they are not valid."""
    try:
        return score_keys(EvaluateSpec.parse(base))
    except SpecError:
        return []


@router.get("/jobs/new")
def new_job(
    page: JobsPage, like: str | None = None, preset: str | None = None, inspection: str | None = None
) -> Response:
    """The form for a job, filled from an example that runs anywhere, another job, a preset, or an inspection."""
    if preset is not None and preset not in PRESETS:
        raise ApiProblem(
            422, "parameter_invalid", f"preset: {preset!r} does not exist: use one of {', '.join(PRESETS)}"
        )
    if like:
        document, source = _of(page, like, "pretrain"), f"A copy of job {like}, which is not changed."
    elif inspection:
        document, source = (
            _proposed(page, inspection),
            f"Settings that fit the dataset of job {inspection}.",
        )
    elif preset:
        document = {"kind": "pretrain", "dataset": {"uri": "builtin://digits"}, "model": {"preset": preset}}
        source = f"The paper's recipe for {preset}: enter the URI of your own images."
    else:
        document, source = _first_job(), "An example that takes a minute on two cores: change anything you like."
    return fill(page, "pretrain", document, source)


@router.get("/searches/new")
def new_search(
    page: JobsPage,
    like: str | None = None,
    job: str | None = None,
    search: str | None = None,
    trial: Annotated[int | None, Query(ge=0, le=LAST_TRIAL)] = None,
    ready: str | None = None,
) -> Response:
    """The form for a search, filled from an example, from another search, or from the spec of a job or trial."""
    document, source = _first_search(), "An example that takes minutes on two cores: change anything you like."
    if like:
        document, source = _of(page, like, "search"), f"A copy of search {like}, which is not changed."
    if job:
        document, source = document | {"base": _of(page, job, "pretrain")}, f"A search based on the spec of job {job}."
    if search and trial is not None:
        spec = searches.detail(page.state, page.caller, search, trial).spec
        if not spec:
            raise ApiProblem(
                409, "trial_not_settled", f"the values of trial {trial} do not form a valid spec: choose another trial"
            )
        over = _of(page, search, "search")
        document = over | {"base": pruned(spec["kind"], spec)}
        source = f"A search based on trial {trial} of search {search}."
    if ready:
        document = ready_search(ready, document["base"])
        source = READY[ready].about
    return fill(page, "search", document, source)


# --- one view into the other ------------------------------------------------------------------------------------------


class DocumentBody(BaseModel):
    """A spec as the form's document."""

    model_config = ConfigDict(extra="forbid")
    document: dict[str, Any]


class TextBody(BaseModel):
    """A spec as YAML."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind
    text: str = Field(max_length=LONGEST)


def _read(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The document in a YAML text, and the line of each field. Raises the API's 422, with the line of what is wrong."""
    try:
        return document_with_lines(text)
    except SpecError as error:
        raise spec_problem(error.problems) from error


@forms.post("/forms/yaml")
def as_yaml(page: JobsPage, body: Annotated[DocumentBody, Body()]) -> JSONResponse:
    """A form's document as YAML."""
    check_csrf(page.request)
    return JSONResponse({"text": yaml_text.dump(body.document)})


@forms.post("/forms/document")
def as_document(page: JobsPage, body: Annotated[TextBody, Body()]) -> JSONResponse:
    """A YAML text as a document, with the line number of each field."""
    check_csrf(page.request)
    document, lines = _read(body.text)
    return JSONResponse({"document": document, "lines": lines})


@forms.post("/forms/form")
def as_form(page: JobsPage, body: Annotated[TextBody, Body()]) -> JSONResponse:
    """A YAML text as a filled form."""
    check_csrf(page.request)
    document, _ = _read(body.text)
    if document.get("kind", body.kind) != body.kind:
        raise spec_problem([Problem("kind", "/kind", document["kind"], f"must be {body.kind} on this page")])
    return JSONResponse({"html": _form(body.kind, document)})

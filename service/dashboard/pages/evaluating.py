"""The pages that start jobs with a backbone, filled from the backbone, its job, or another job of the kind."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Response

from service.backbones import registry
from service.backbones import service as backbones
from service.backbones.registry import Served
from service.backbones.schemas import MAIN, VersionView
from service.dashboard.pages.starting import fill
from service.dashboard.site import JobsPage, Page, PageRoute
from service.dashboard.specform import pruned
from service.http.problems import ApiProblem
from service.jobs import reading
from service.jobs.schemas import JobView
from trainer.spec import metric_keys
from trainer.spec.job import Kind
from trainer.spec.subject import reference

router = APIRouter(include_in_schema=False, route_class=PageRoute)

NO_LABELS: Final = "no labels"
"""How a job's progress begins to say that its images have none."""
UNKNOWN: Final = "Enter the URI of labelled images."


@router.get("/evaluations/new")
def new(
    page: JobsPage,
    backbone: str | None = None,
    job: str | None = None,
    checkpoint: str | None = None,
    like: str | None = None,
) -> Response:
    """The form for an evaluation, filled for a registered backbone, a pretraining job or one of its checkpoints, or
    from another evaluation.
    """
    if like:
        document, source = _like(page, like, Kind.EVALUATE), f"A copy of job {like}, which is not changed."
    elif backbone:
        document, source = _of_backbone(page, backbone)
    elif job:
        document, source = _of_job(page, job, checkpoint)
    else:
        document, source = {"kind": "evaluate"}, "Choose a backbone, and enter the URI of labelled images."
    return fill(page, "evaluate", document, source)


@router.get("/embeddings/new")
def new_embedding(page: JobsPage, backbone: str | None = None, like: str | None = None) -> Response:
    """The form for features of images, filled for a registered backbone or from another such job."""
    if like:
        document, source = _like(page, like, Kind.EMBED), f"A copy of job {like}, which is not changed."
    elif backbone:
        served = _served(page, backbone)
        images = {"dataset": {"uri": served.row.dataset_uri}} if served.row.dataset_uri else {}
        document = {"kind": "embed", "backbone": f"{served.name}:{served.row.version}"} | images
        source = "Enter the URI of your images, which need no labels. The features become Parquet files."
    else:
        document, source = {"kind": "embed"}, "Choose a backbone, and enter the URI of your images."
    return fill(page, "embed", document, source)


def _like(page: Page, job_id: str, kind: Kind) -> dict[str, Any]:
    job = reading.show(page.state, page.caller, job_id)
    if job.kind != kind:
        raise ApiProblem(409, "not_for_this_kind", f"{job_id} is a {job.kind} job: choose one of kind {kind}")
    return pruned(kind, job.spec)


def _of_job(page: Page, job_id: str, checkpoint: str | None) -> tuple[dict[str, Any], str]:
    job = reading.show(page.state, page.caller, job_id)
    if job.kind != Kind.PRETRAIN:
        raise ApiProblem(409, "not_for_this_kind", f"{job_id} is a {job.kind} job: choose one of kind pretrain")
    subject = {"job": job_id} | ({"checkpoint": checkpoint} if checkpoint else {})
    return _with_images({"kind": "evaluate", "backbone": subject}, _images(job))


def _of_backbone(page: Page, text: str) -> tuple[dict[str, Any], str]:
    served = _served(page, text)
    version = backbones.describe(page.state, served)
    images = _images(_trainer(page, version))
    if not images and served.row.dataset_uri and metric_keys.LINEAR_TOP1 in version.metrics:
        images = {"dataset": {"uri": served.row.dataset_uri}}  # the probe has used its labels
    return _with_images({"kind": "evaluate", "backbone": f"{version.name}:{version.version}"}, images)


def _served(page: Page, text: str) -> Served:
    """The version that a text names. Raises the API's 404 and 422."""
    try:
        meant = reference(text)
    except ValueError as error:
        raise ApiProblem(422, "parameter_invalid", f"backbone: {error}") from error
    return registry.find_ready(page.state, page.caller, meant.name, str(meant.version or meant.alias or MAIN))


def _trainer(page: Page, version: VersionView) -> JobView | None:
    """The job that trained a version; None if it is gone, or not for this caller."""
    try:
        return reading.show(page.state, page.caller, version.trained_by or version.job_id)
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        return None


def _images(job: JobView | None) -> dict[str, Any]:
    """The datasets of a pretraining job whose images have labels: the one that it trained on, and its held-out one."""
    labels = getattr(job.progress, "labels", "") if job else ""
    if job is None or job.kind != Kind.PRETRAIN or not labels or labels.startswith(NO_LABELS):
        return {}
    test = job.spec["evaluation"].get("dataset")
    return {"dataset": job.spec["dataset"]} | ({"test": test} if test else {})


def _with_images(document: dict[str, Any], images: dict[str, Any]) -> tuple[dict[str, Any], str]:
    if not images:
        return document, UNKNOWN
    return pruned("evaluate", document | images), "It starts with the images of its training, which have labels."

"""Routes of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.deps import CallerDep, PartsDep
from service.jobs import service
from service.jobs.lifecycle import Verb
from service.jobs.repository import Filters
from service.jobs.schemas import (
    AttemptView,
    Deletion,
    EventView,
    ImageView,
    JobView,
    LogView,
    MetricsView,
    Page,
    PatchBody,
    PlanView,
    ResumeBody,
    RetryBody,
    State,
)
from trainer.spec.pretrain import PretrainSpec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Limit = Annotated[int, Query(ge=1, le=500)]
LogLimit = Annotated[int, Query(ge=1, le=5000)]


@router.post("", status_code=201)
def submit(
    spec: PretrainSpec,
    parts: PartsDep,
    caller: CallerDep,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=200, min_length=1)] = None,
) -> JobView:
    """Submit a job. The same `Idempotency-Key` with the same spec answers 200 and the same job."""
    job, new = service.submit(parts, caller, spec, idempotency_key)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.post("/plan")
def plan(spec: PretrainSpec, parts: PartsDep, caller: CallerDep) -> PlanView:
    """What a spec would need, and whether it would start now, later or never, and why."""
    return service.plan(parts, caller, spec)


@router.get("")
def listing(
    parts: PartsDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    state: Annotated[list[State] | None, Query()] = None,
    kind: str | None = None,
    owner: str | None = None,
    label: Annotated[list[str] | None, Query(description="name:value")] = None,
    name_contains: str | None = None,
    created_after: datetime | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[JobView]:
    """Jobs, newest first."""
    filters = Filters(state or (), kind, owner, label or (), name_contains, created_after)
    return service.listing(parts, filters, limit, cursor)


@router.get("/{job_id}")
def show(job_id: str, parts: PartsDep, caller: CallerDep) -> JobView:  # noqa: ARG001 - a token is needed
    """One job."""
    return service.show(parts, job_id)


@router.patch("/{job_id}")
def patch(job_id: str, body: PatchBody, parts: PartsDep, caller: CallerDep) -> JobView:
    """Change a job's priority, labels or notes; what is left out stays."""
    return service.patch(parts, caller, job_id, body)


@router.delete("/{job_id}")
def delete(
    job_id: str,
    parts: PartsDep,
    caller: CallerDep,
    preview: Annotated[bool, Query(description="say what would go, and delete nothing")] = False,
    with_backbones: Annotated[bool, Query(description="delete the registered versions that it made too")] = False,
) -> Deletion:
    """Delete a job that has ended, with its run, artifacts and registered versions; answers what goes."""
    if preview:
        return service.deletion(parts, caller, job_id)
    return service.delete_job(parts, caller, job_id, with_backbones)


@router.get("/{job_id}/spec")
def spec_of(job_id: str, parts: PartsDep, caller: CallerDep) -> PretrainSpec:  # noqa: ARG001 - a token is needed
    """The job's spec; submitting it again runs the same."""
    return PretrainSpec.parse(service.show(parts, job_id).spec)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, parts: PartsDep, caller: CallerDep) -> JobView:
    """End a job at its next step, with a checkpoint."""
    return service.apply_verb(parts, caller, job_id, Verb.CANCEL)


@router.post("/{job_id}/pause")
def pause(job_id: str, parts: PartsDep, caller: CallerDep) -> JobView:
    """Stop a job at its next step, with a checkpoint, until it is resumed."""
    return service.apply_verb(parts, caller, job_id, Verb.PAUSE)


@router.post("/{job_id}/resume")
def resume(job_id: str, parts: PartsDep, caller: CallerDep, body: ResumeBody | None = None) -> JobView:
    """Queue a paused job again; it goes on from its last checkpoint, on other resources if told so."""
    return service.apply_verb(parts, caller, job_id, Verb.RESUME, body)


@router.post("/{job_id}/retry")
def retry(job_id: str, parts: PartsDep, caller: CallerDep, body: RetryBody | None = None) -> JobView:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint, or begins again."""
    return service.apply_verb(parts, caller, job_id, Verb.RETRY, body)


@router.post("/{job_id}/stop")
def stop(job_id: str, parts: PartsDep, caller: CallerDep) -> JobView:
    """Finish a search's running trials and start no others. A job of another kind has none: 409."""
    return service.apply_verb(parts, caller, job_id, Verb.STOP)


@router.get("/{job_id}/events")
def events(
    job_id: str,
    parts: PartsDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    limit: Limit = 200,
    cursor: str | None = None,
) -> Page[EventView]:
    """What happened to a job, oldest first."""
    return service.events(parts, job_id, cursor, limit)


@router.get("/{job_id}/attempts")
def attempts(job_id: str, parts: PartsDep, caller: CallerDep) -> Page[AttemptView]:  # noqa: ARG001 - a token is needed
    """The job's attempts, oldest first."""
    return service.attempts(parts, job_id)


@router.get("/{job_id}/logs")
def logs(
    job_id: str,
    parts: PartsDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    attempt: Annotated[int | None, Query(ge=1)] = None,
    source: Annotated[str | None, Query(description="driver or rank-<n>")] = None,
    limit: LogLimit = 500,
    cursor: str | None = None,
) -> Page[LogView]:
    """Log lines by attempt and source. `next_cursor` is always there: ask with it again for lines that came since."""
    return service.logs(parts, job_id, attempt, source, cursor, limit)


@router.get("/{job_id}/metrics")
def metrics(
    job_id: str,
    parts: PartsDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    key: Annotated[list[str] | None, Query(description="repeatable; all by default")] = None,
) -> MetricsView:
    """Metric curves by optimiser step."""
    return service.metrics(parts, job_id, key or ())


@router.get("/{job_id}/images")
def images(job_id: str, parts: PartsDep, caller: CallerDep) -> Page[ImageView]:  # noqa: ARG001 - a token is needed
    """Pictures of reconstructions, by step."""
    return service.images(parts, job_id)


@router.get("/{job_id}/images/{name}", response_class=Response)
def image(job_id: str, name: str, parts: PartsDep, caller: CallerDep) -> Response:  # noqa: ARG001 - a token is needed
    """One picture, as PNG."""
    return Response(service.image(parts, job_id, name), media_type="image/png")

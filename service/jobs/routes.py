"""Routes of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from service.context.app_state import MayControlJobs, MayReadCluster, MayReadJobs, MaySubmit, StateDep
from service.http.ranges import file_response
from service.http.routing import ApiRoute
from service.http.schemas import Moment, Page
from service.jobs import metric_curves as curves
from service.jobs import reading, run_files, service
from service.jobs.changes import ChangesDep
from service.jobs.lifecycle import Verb
from service.jobs.listing import Filters
from service.jobs.logs import LogFilter
from service.jobs.output_schemas import (
    LAST_ATTEMPT,
    CheckpointView,
    ImageView,
    JobFileView,
    JobsMetricsView,
    Level,
    LogPage,
    MetricsView,
)
from service.jobs.schemas import AttemptView, Deletion, EventView, JobView, PatchBody, PlanView, ResumeBody, RetryBody
from service.jobs.state import State
from service.jobs.stream import ReaderDep
from trainer.spec.job import JobSpec, Kind, parse_spec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=ApiRoute)
metrics_router = APIRouter(prefix="/v1/metrics", tags=["jobs"], route_class=ApiRoute)
stream_router = APIRouter(prefix="/v1/stream", tags=["jobs"], route_class=ApiRoute)

Limit = Annotated[int, Query(ge=1, le=500)]
SpecBody = Annotated[JobSpec, Body(discriminator="kind")]
Points = Annotated[int, Query(ge=1, le=10_000, description="points of each curve, at most")]
LogLevel = Annotated[Level | None, Query(description="the lowest level to include")]
LogSearch = Annotated[str | None, Query(max_length=200, description="text that the message contains, ignoring case")]
LogTail = Annotated[
    int | None, Query(ge=0, le=5000, description="only this many of the last lines, by time; excludes `cursor`")
]
LogLimit = Annotated[int, Query(ge=1, le=5000)]


@router.post("", status_code=201)
def submit(
    spec: SpecBody,
    app_state: StateDep,
    caller: MaySubmit,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=200, min_length=1)] = None,
) -> JobView:
    """Submit a job. A repeated request with the same `Idempotency-Key` and spec returns 200 and the same job."""
    job, new = service.submit(app_state, caller, spec, idempotency_key)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.post("/plan")
def plan(spec: SpecBody, app_state: StateDep, caller: MayReadCluster) -> PlanView:
    """The resources that a spec needs, and whether it would start now, later or never, and why."""
    return service.plan(app_state, caller, spec)


@router.get("", response_model=Page[JobView])
def listing(
    app_state: StateDep,
    caller: MayReadJobs,
    state: Annotated[list[State] | None, Query()] = None,
    kind: Kind | None = None,
    owner: str | None = None,
    label: Annotated[
        list[str] | None, Query(description="name:value; a job has to have all of them", max_length=32)
    ] = None,
    name_contains: str | None = None,
    created_after: Moment | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Response:
    """Jobs, newest first."""
    filters = Filters(state or (), kind, owner, label or (), name_contains, created_after, caller)
    return Response(reading.listing_json(app_state, filters, limit, cursor), media_type="application/json")


@router.get("/{job_id}", response_model=JobView)
def show(job_id: str, app_state: StateDep, caller: MayReadJobs) -> Response:
    """One job."""
    return _serialised(reading.show(app_state, caller, job_id))


def _serialised(found: BaseModel) -> Response:
    """Serialised here, on the request's thread: FastAPI would validate and serialise it on the event loop."""
    return Response(found.model_dump_json(), media_type="application/json")


@router.patch("/{job_id}")
def patch(job_id: str, body: PatchBody, app_state: StateDep, caller: MayControlJobs) -> JobView:
    """Change a job's priority, labels or notes; fields that are left out keep their values."""
    return service.patch(app_state, caller, job_id, body)


@router.delete("/{job_id}")
def delete(
    job_id: str,
    app_state: StateDep,
    caller: MayControlJobs,
    preview: Annotated[bool, Query(description="return what would be deleted, and delete nothing")] = False,
    with_backbones: Annotated[bool, Query(description="also delete the versions that the job registered")] = False,
) -> Deletion:
    """Delete a job that has ended, with its run, artifacts and registered versions; returns what is deleted."""
    if preview:
        caller.changes_nothing()
        return service.deletion(app_state, caller, job_id)
    return service.delete_job(app_state, caller, job_id, with_backbones)


@router.get("/{job_id}/spec")
def spec_of(job_id: str, app_state: StateDep, caller: MayReadJobs) -> JobSpec:
    """The job's spec; submitting it runs the same job again."""
    return parse_spec(reading.show(app_state, caller, job_id).spec)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, app_state: StateDep, caller: MayControlJobs) -> JobView:
    """Cancel a job: it ends at its next step, with a checkpoint."""
    return service.apply_verb(app_state, caller, job_id, Verb.CANCEL)


@router.post("/{job_id}/pause")
def pause(job_id: str, app_state: StateDep, caller: MayControlJobs) -> JobView:
    """Pause a job: it stops at its next step, with a checkpoint, until it is resumed."""
    return service.apply_verb(app_state, caller, job_id, Verb.PAUSE)


@router.post("/{job_id}/resume")
def resume(job_id: str, app_state: StateDep, caller: MayControlJobs, body: ResumeBody | None = None) -> JobView:
    """Queue a paused job again, optionally with other resources; it resumes from its last checkpoint, if it has one."""
    return service.apply_verb(app_state, caller, job_id, Verb.RESUME, body)


@router.post("/{job_id}/retry")
def retry(job_id: str, app_state: StateDep, caller: MayControlJobs, body: RetryBody | None = None) -> JobView:
    """Queue a failed or cancelled job again; it resumes from its last checkpoint, if it has one, or starts over."""
    return service.apply_verb(app_state, caller, job_id, Verb.RETRY, body)


@router.post("/{job_id}/stop")
def stop(job_id: str, app_state: StateDep, caller: MayControlJobs) -> JobView:
    """Stop a search: its running trials finish, and no others start. Other kinds of jobs have no trials: 409."""
    return service.apply_verb(app_state, caller, job_id, Verb.STOP)


@router.get("/{job_id}/events")
def events(
    job_id: str,
    app_state: StateDep,
    caller: MayReadJobs,
    limit: Limit = 200,
    cursor: str | None = None,
) -> Page[EventView]:
    """The job's events, oldest first."""
    return reading.events(app_state, caller, job_id, cursor, limit)


@router.get("/{job_id}/attempts")
def attempts(job_id: str, app_state: StateDep, caller: MayReadJobs) -> Page[AttemptView]:
    """The job's attempts, oldest first."""
    return reading.attempts(app_state, caller, job_id)


@router.get("/{job_id}/logs")
def logs(
    job_id: str,
    app_state: StateDep,
    caller: MayReadJobs,
    attempt: Annotated[int | None, Query(ge=1, le=LAST_ATTEMPT)] = None,
    source: Annotated[str | None, Query(description="driver or rank-<n>")] = None,
    level: LogLevel = None,
    search: LogSearch = None,
    tail: LogTail = None,
    limit: LogLimit = 500,
    cursor: str | None = None,
) -> LogPage:
    """Log lines by attempt and source. Continue with `next_cursor`: at once where there is `more`, otherwise later, for
    lines that were logged in the meantime."""
    return reading.logs(app_state, caller, job_id, LogFilter(source, level, search, attempt), cursor, limit, tail)


@router.get("/{job_id}/logs/{attempt}/{source}", response_class=StreamingResponse)
@router.head("/{job_id}/logs/{attempt}/{source}", response_class=StreamingResponse)
def whole_log(
    job_id: str,
    attempt: Annotated[int, Path(ge=1, le=LAST_ATTEMPT)],
    source: str,
    app_state: StateDep,
    caller: MayReadJobs,
    request: Request,
) -> Response:
    """The whole log of one source of an attempt so far, as JSON lines. Supports `Range`."""
    found = reading.whole_log(app_state, caller, job_id, attempt, source)
    name = f"{job_id}-a{attempt}-{source}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return file_response(request, found, f'"{name}-{found.size}"', "application/x-ndjson", headers)


@router.get("/{job_id}/stream", response_class=EventSourceResponse)
async def stream(reader: ReaderDep) -> AsyncIterable[ServerSentEvent]:
    """Follow a job by server-sent events: `job` (JobView) first and whenever it changes, `event` (EventView),
    `metrics` (MetricsTick), `log` (LogBatch), and `end` once the job has ended and all its lines have been sent.

    Every `id` encodes a position: sent as `Last-Event-ID` to any process of the service, it continues right after it.
    """
    async for event in reader.events():
        yield event


@stream_router.get("", response_class=EventSourceResponse)
async def changes(subscription: ChangesDep) -> AsyncIterable[ServerSentEvent]:
    """Follow all jobs that the caller may see: an event `jobs` (JobsChanged) names those that have changed, within a
    second or two. The first event names none: every change after it is reported."""
    async for event in subscription:
        yield event


@router.get("/{job_id}/metrics")
def metrics(
    job_id: str,
    app_state: StateDep,
    caller: MayReadJobs,
    key: Annotated[list[str] | None, Query(description="metric key, repeatable; all by default")] = None,
    points: Points = 1000,
) -> MetricsView:
    """Metric curves by optimiser step, each of at most `points` points."""
    return curves.metrics(app_state, caller, job_id, key or (), points)


@metrics_router.get("")
def metrics_of_jobs(
    app_state: StateDep,
    caller: MayReadJobs,
    job: Annotated[list[str], Query(min_length=1, max_length=50, description="job id; repeatable")],
    key: Annotated[list[str], Query(min_length=1, max_length=20, description="metric key; repeatable")],
    points: Points = 1000,
) -> JobsMetricsView:
    """Metric curves of several jobs, to compare them."""
    return curves.metrics_of_jobs(app_state, caller, job, key, points)


@router.get("/{job_id}/checkpoints")
def checkpoints(job_id: str, app_state: StateDep, caller: MayReadJobs) -> Page[CheckpointView]:
    """The checkpoints from which a next attempt could resume, newest first."""
    return reading.checkpoints(app_state, caller, job_id)


@router.get("/{job_id}/images")
def images(job_id: str, app_state: StateDep, caller: MayReadJobs) -> Page[ImageView]:
    """Images of reconstructions, by step."""
    return reading.images(app_state, caller, job_id)


@router.get("/{job_id}/images/{name}", response_class=Response)
def image(job_id: str, name: str, app_state: StateDep, caller: MayReadJobs) -> Response:
    """One image, as PNG."""
    return Response(reading.image(app_state, caller, job_id, name), media_type="image/png")


@router.get("/{job_id}/files")
def files(
    job_id: str,
    app_state: StateDep,
    caller: MayReadJobs,
    prefix: Annotated[str, Query(max_length=1000, description="how the paths begin, such as `embeddings/`")] = "",
    limit: Limit = 100,
    cursor: str | None = None,
) -> Page[JobFileView]:
    """The files that the job has left for people, by path: `embeddings/`, `evaluation.json`, `evaluation/`,
    `inspection.json` and `images/`. Checkpoints and logs have routes of their own."""
    return reading.files(app_state, caller, job_id, prefix, limit, cursor)


@router.get("/{job_id}/files/{path:path}", response_class=StreamingResponse)
@router.head("/{job_id}/files/{path:path}", response_class=StreamingResponse)
def file(job_id: str, path: str, app_state: StateDep, caller: MayReadJobs, request: Request) -> Response:
    """One of the job's files, streamed as a download. Supports `Range`."""
    found = reading.file(app_state, caller, job_id, path)
    name = quote(path.rpartition("/")[2])
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return file_response(request, found, found.etag, run_files.media_type(path), headers)

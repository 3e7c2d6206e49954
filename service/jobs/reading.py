"""Read requests for jobs. The storage is read outside of any transaction."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json
from sqlalchemy.orm import Session

from service.adapters.storage import Artifacts, StoredFile
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.db.tables import Attempt, Job
from service.http import paging
from service.http.problems import not_found
from service.http.schemas import Page
from service.jobs import repository, run_files
from service.jobs.checkpoints import checkpoints_of
from service.jobs.following import followers
from service.jobs.listing import VIEW_COLUMNS, Filters, jobs_page
from service.jobs.log_files import LogFiles, WholeLog, whole
from service.jobs.logs import LogFilter, Logs, page
from service.jobs.output_schemas import CheckpointView, ImageView, JobFileView, LogPage
from service.jobs.progress import steps_per_epoch
from service.jobs.schemas import AttemptView, EventView, JobSummary, JobView, PromotedFrom
from trainer.protocol import names


def view(session: Session, job: Job) -> JobView:
    """A job as the API shows it."""
    fields: dict[str, Any] = {column.key: getattr(job, column.key) for column in VIEW_COLUMNS}
    fields["follower"] = session.scalar(followers(job.id))
    return JobView.model_validate({**_with_relations(fields), "spec": job.run_spec})


def _with_relations(fields: dict[str, Any]) -> dict[str, Any]:
    """The same with the jobs that it came from and that follow it."""
    search, follower = fields["search_id"], fields["follower"]
    fields["promoted_from"] = PromotedFrom(search=search, trial=fields["trial"]) if search else None
    fields["followed_by"] = [follower] if follower else []
    return fields


def show(app_state: AppState, caller: Caller, job_id: str) -> JobView:
    with app_state.database.query() as session:
        return view(session, repository.visible_job(session, job_id, caller))


def listing(app_state: AppState, filters: Filters, limit: int, cursor: str | None) -> Page[JobView]:
    with app_state.database.query() as session:
        jobs, following = jobs_page(session, filters, limit, cursor)
    views = [JobView.model_validate({**_with_relations(job), "spec": from_json(job["spec"])}) for job in jobs]
    return Page[JobView](items=views, next_cursor=following)


def listing_json(app_state: AppState, filters: Filters, limit: int, cursor: str | None) -> str:
    """The same as JSON. Specs, which are most of it, are neither decoded nor encoded."""
    with app_state.database.query() as session:
        jobs, following = jobs_page(session, filters, limit, cursor)
    summaries = [JobSummary.model_validate(_with_relations(job)).model_dump_json() for job in jobs]
    items = [f'{summary[:-1]},"spec":{job["spec"]}}}' for summary, job in zip(summaries, jobs, strict=True)]
    return f'{{"items":[{",".join(items)}],"next_cursor":{json.dumps(following)}}}'


def events(app_state: AppState, caller: Caller, job_id: str, cursor: str | None, limit: int) -> Page[EventView]:
    after = paging.read_number(cursor) if cursor else 0
    with app_state.database.read() as session:
        repository.visible_job(session, job_id, caller)
        found = repository.events(session, job_id, after, limit + 1)
        items = [EventView.model_validate(event, from_attributes=True) for event in found[:limit]]
        following = paging.write_cursor([items[-1].id]) if len(found) > limit else None
        return Page[EventView](items=items, next_cursor=following)


def attempts(app_state: AppState, caller: Caller, job_id: str) -> Page[AttemptView]:
    with app_state.database.read() as session:
        repository.visible_job(session, job_id, caller)
        found: list[Attempt] = repository.attempts(session, job_id)
        return Page[AttemptView](items=[AttemptView.model_validate(a, from_attributes=True) for a in found])


def logs(
    app_state: AppState,
    caller: Caller,
    job_id: str,
    log_filter: LogFilter,
    cursor: str | None,
    limit: int,
    tail: int | None,
) -> LogPage:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    if not job.artifact_uri:
        return LogPage(items=[])
    logs = Logs(LogFiles(app_state.artifacts, job.artifact_uri), range(1, job.attempts + 1))
    return page(logs, log_filter, cursor, limit, tail)


def whole_log(app_state: AppState, caller: Caller, job_id: str, attempt: int, source: str) -> WholeLog:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    found = whole(app_state.artifacts, job.artifact_uri, attempt, source) if job.artifact_uri else None
    if found is None:
        raise not_found("log", f"{attempt}/{source}")
    return found


def checkpoints(app_state: AppState, caller: Caller, job_id: str) -> Page[CheckpointView]:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    return Page[CheckpointView](items=checkpoints_of(job, app_state.artifacts))


def images(app_state: AppState, caller: Caller, job_id: str) -> Page[ImageView]:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    per_epoch = steps_per_epoch(job.run_spec, job.dataset_images)
    return image_views(app_state.artifacts, job.artifact_uri, f"/v1/jobs/{job_id}", per_epoch)


def image(app_state: AppState, caller: Caller, job_id: str, name: str) -> bytes:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    return image_bytes(app_state.artifacts, job.artifact_uri, name)


def files(
    app_state: AppState, caller: Caller, job_id: str, prefix: str, limit: int, cursor: str | None
) -> Page[JobFileView]:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    return run_files.listing(app_state.artifacts, job.artifact_uri, job_id, prefix, limit, cursor)


def file(app_state: AppState, caller: Caller, job_id: str, path: str) -> StoredFile:
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    found = run_files.find(app_state.artifacts, job.artifact_uri, path) if job.artifact_uri else None
    if found is None:
        raise not_found("file", path)
    return found


def image_views(artifacts: Artifacts, folder: str | None, resource: str, per_epoch: int | None) -> Page[ImageView]:
    """A run's images by step; empty where it has no artifact folder yet.

    ``resource`` is the path of the API's resource that they belong to; ``per_epoch`` the steps per epoch, if known.
    """
    sizes = artifacts.sizes(folder, names.IMAGES) if folder else {}
    pngs = [name for name in sorted(sizes) if name.startswith("reconstruction_") and name.endswith(".png")]
    steps = [int(name.removeprefix("reconstruction_").removesuffix(".png")) for name in pngs]
    return Page[ImageView](
        items=[
            ImageView(
                step=step,
                epoch=step / per_epoch if per_epoch else None,
                name=name,
                url=f"{resource}/images/{quote(name)}",
            )
            for step, name in zip(steps, pngs, strict=True)
        ]
    )


def image_bytes(artifacts: Artifacts, folder: str | None, name: str) -> bytes:
    """The bytes of one image; raises the API's 404."""
    data = artifacts.read(folder, f"{names.IMAGES}/{name}") if folder and name.endswith(".png") else None
    if data is None:
        raise not_found("image", name)
    return data

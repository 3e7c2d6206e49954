"""The registered versions that came out of a job, as its result lists them."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from service.context.kind import Kinds
from service.db.tables import Job
from service.jobs.schemas import BackboneRef, Result


def versions(job: Job) -> list[BackboneRef]:
    """The versions that a job's result lists."""
    return Result.model_validate(job.result or {}).backbones


def reset(job: Job) -> None:
    """Clear a job's result except for its versions, which still exist."""
    kept = versions(job)
    job.result = Result(backbones=kept).model_dump(mode="json") if kept else None


def add(session: Session, kinds: Kinds, job: Job, registered: Iterable[BackboneRef]) -> None:
    """List new versions in the result of the job that registered them, and of the job that trained them.

    If the former has no version yet, the last one is that of its result.
    """
    registered = list(registered)
    for each in _with_source(session, kinds, job):
        result = Result.model_validate(each.result or {})
        if each is job and result.backbone is None and registered:
            result.backbone = registered[-1]
        _write(each, result, [*result.backbones, *(ref for ref in registered if ref not in result.backbones)])


def drop(session: Session, kinds: Kinds, job_id: str, version: BackboneRef) -> None:
    """Remove a deleted version from the results of the job that registered it and of the job that trained it."""
    job = session.get(Job, job_id)
    for each in _with_source(session, kinds, job) if job else ():
        if not each.result:
            continue
        result = Result.model_validate(each.result)
        remaining = [other for other in result.backbones if other != version]
        if result.backbone == version:
            same_name = (other for other in remaining if other.name == version.name)
            result.backbone = max(same_name, key=_number, default=None)
        _write(each, result, remaining)


def _with_source(session: Session, kinds: Kinds, job: Job) -> list[Job]:
    """A job, and the job whose checkpoint it publishes, if any."""
    source_id = kinds[job.kind].source_job(job)
    source = session.get(Job, source_id) if source_id else None
    return [job, source] if source else [job]


def _number(version: BackboneRef) -> int:
    return version.version


def _write(job: Job, result: Result, backbones: list[BackboneRef]) -> None:
    job.result = result.model_copy(update={"backbones": backbones}).model_dump(mode="json")

"""The versions that came out of a job, kept beside its other results."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from service.db.tables import Job
from service.jobs.schemas import BackboneRef, Result


def of(job: Job) -> list[BackboneRef]:
    """Those that a job names."""
    return Result.model_validate(job.result or {}).backbones


def reset(job: Job) -> None:
    """Forget what a job left, but for its versions: they are still there."""
    kept = of(job)
    job.result = Result(backbones=kept).model_dump(mode="json") if kept else None


def add(session: Session, job: Job, versions: Iterable[BackboneRef]) -> None:
    """A job has registered versions; the one that trained them, where that is another, names them too."""
    found = list(versions)
    for each in _both(session, job):
        result = Result.model_validate(each.result or {})
        _write(each, result, [*result.backbones, *(version for version in found if version not in result.backbones)])


def drop(session: Session, job_id: str, version: BackboneRef) -> None:
    """A version that a job registered is gone: it is no longer named."""
    job = session.get(Job, job_id)
    for each in _both(session, job) if job else ():
        if not each.result:
            continue
        result = Result.model_validate(each.result)
        left = [other for other in result.backbones if other != version]
        if result.backbone == version:
            result.backbone = max((other for other in left if other.name == version.name), key=_number, default=None)
        _write(each, result, left)


def _both(session: Session, job: Job) -> list[Job]:
    """A job, and the one whose checkpoint it published."""
    trained_by = session.get(Job, str(job.spec["job"])) if job.spec.get("job") else None
    return [job, trained_by] if trained_by else [job]


def _number(version: BackboneRef) -> int:
    return version.version


def _write(job: Job, result: Result, versions: list[BackboneRef]) -> None:
    job.result = result.model_copy(update={"backbones": versions}).model_dump(mode="json")

"""Queries for searches. Every function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.context.kind import Kinds
from service.db.tables import Job
from service.http.problems import ApiProblem
from service.jobs import repository


def visible_search(session: Session, kinds: Kinds, job_id: str, caller: Caller) -> Job:
    """A search that the caller may see; raises the API's 404, and 409 for another kind of job."""
    return must_be_search(kinds, repository.visible_job(session, job_id, caller))


def must_be_search(kinds: Kinds, job: Job) -> Job:
    """Raises the API's 409 for another kind of job."""
    if not kinds[job.kind].has_trials:
        text = f"{job.id} is a {job.kind} job, not a search: its path is /v1/jobs/{job.id}"
        raise ApiProblem(409, "not_for_this_kind", text)
    return job


def promoted_jobs(
    session: Session, search_id: str, caller: Caller, numbers: Sequence[int] | None = None
) -> dict[int, list[str]]:
    """Ids of the jobs that trials were promoted to and that the caller may see, oldest first, by the trial's number.

    ``numbers`` selects trials; None selects all.
    """
    query = select(Job.trial, Job.id).where(Job.search_id == search_id, Job.deleted_at.is_(None))
    if numbers is not None:
        query = query.where(Job.trial.in_(numbers))
    if caller.sees_only is not None:
        query = query.where(Job.owner == caller.sees_only)
    jobs: dict[int, list[str]] = {}
    for number, job_id in session.execute(query.order_by(Job.created_at, Job.id)):
        if number is not None:  # it is set together with the search's id
            jobs.setdefault(number, []).append(job_id)
    return jobs

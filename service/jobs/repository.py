"""Queries for jobs, attempts and events. Every function works inside its caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.db.tables import Attempt, Event, Job, now
from service.http.problems import not_found
from service.jobs.state import ACTIVE, State

ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id() -> str:
    """A short id that sorts by time: eight characters of milliseconds and six random ones."""
    moment = int(now().timestamp() * 1000)
    stamp = "".join(ID_ALPHABET[moment >> shift & 31] for shift in range(40, -1, -5))
    return f"job-{stamp}{''.join(secrets.choice(ID_ALPHABET) for _ in range(6))}"


def get(session: Session, job_id: str) -> Job:
    """A job by its id; raises the API's 404. For a request use `visible_job`."""
    job = session.get(Job, job_id)
    if job is None or job.deleted_at is not None:
        raise not_found("job", job_id)
    return job


def visible_job(session: Session, job_id: str, caller: Caller) -> Job:
    """A job by its id; raises the API's 404 where it does not exist or the caller may not see it."""
    job = get(session, job_id)
    if not caller.sees(job.owner):
        raise not_found("job", job_id)
    return job


def by_idempotency_key(session: Session, owner: str, key: str) -> Job | None:
    return session.scalar(select(Job).where(Job.owner == owner, Job.idempotency_key == key))


def active(session: Session) -> list[tuple[Job, Attempt | None]]:
    """Active jobs, oldest first, each with its last attempt."""
    jobs = session.scalars(select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.created_at))
    return [(job, last_attempt(session, job)) for job in jobs]


def waiting(session: Session) -> list[Job]:
    """Jobs that wait for an attempt: queued ones, and recovering ones whose last attempt has ended."""
    states = [State.QUEUED.value, State.RECOVERING.value]
    jobs = session.scalars(select(Job).where(Job.state.in_(states)).order_by(Job.id))
    return [job for job in jobs if job.state == State.QUEUED or not live_attempt(session, job)]


@dataclass(frozen=True)
class StateCount:
    """The jobs of one state and kind."""

    count: int
    since: datetime
    """When the job that has waited longest began to wait for an attempt."""


def count_by_state(session: Session) -> dict[tuple[str, str], StateCount]:
    """The number of jobs by state and kind, read from an index alone."""
    query = select(Job.state, Job.kind, func.count(), func.min(Job.waiting_since)).where(Job.deleted_at.is_(None))
    rows = session.execute(query.group_by(Job.state, Job.kind))
    return {(state, kind): StateCount(count, since) for state, kind, count, since in rows}


def running_progress(session: Session) -> dict[str, dict[str, Any]]:
    """The progress of each running job that has reported any."""
    query = select(Job.id, Job.progress).where(Job.state == State.RUNNING, Job.progress.is_not(None))
    return {row.id: row.progress for row in session.execute(query)}


def last_attempt(session: Session, job: Job) -> Attempt | None:
    return session.get(Attempt, (job.id, job.attempts)) if job.attempts else None


def live_attempt(session: Session, job: Job) -> Attempt | None:
    attempt = last_attempt(session, job)
    return attempt if attempt and attempt.ended_at is None else None


def attempts(session: Session, job_id: str) -> list[Attempt]:
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def has_checkpoint(session: Session, job: Job) -> bool:
    """Whether an attempt has stored a checkpoint from which the job's next attempt would resume."""
    query = select(Attempt.number).where(
        Attempt.job_id == job.id, Attempt.number >= job.since_attempt, Attempt.checkpoint.is_not(None)
    )
    return session.scalar(query.limit(1)) is not None


def events(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return list(session.scalars(query))


def jobs_by_id(session: Session, ids: Sequence[str]) -> dict[str, Job]:
    """The jobs with these ids, without those that do not exist."""
    return {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids), Job.deleted_at.is_(None)))}


def deleted(session: Session) -> list[Job]:
    """Deleted jobs whose data has not been removed yet."""
    return list(session.scalars(select(Job).where(Job.deleted_at.is_not(None)).order_by(Job.deleted_at)))


def remove(session: Session, job_id: str) -> None:
    """Delete the row of a deleted job, with its attempts and events."""
    session.execute(delete(Job).where(Job.id == job_id, Job.deleted_at.is_not(None)))


def ended_submissions(session: Session, submission_ids: Sequence[str]) -> list[str]:
    """Of these submissions, those of attempts that have ended."""
    query = select(Attempt.submission_id).where(
        Attempt.submission_id.in_(submission_ids), Attempt.ended_at.is_not(None)
    )
    return list(session.scalars(query))


def unswept(session: Session, before: datetime, limit: int) -> list[tuple[Job, Attempt]]:
    """Attempts that ended before a moment and have not been swept yet, oldest first."""
    query = select(Job, Attempt).join(Attempt, Attempt.job_id == Job.id)
    query = query.where(Attempt.ended_at < before, Attempt.swept_at.is_(None), Job.deleted_at.is_(None))
    return [(job, attempt) for job, attempt in session.execute(query.order_by(Attempt.ended_at).limit(limit))]

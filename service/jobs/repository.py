"""Queries for jobs, attempts and events. Every function works inside its caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Table, and_, bindparam, delete, exists, func, literal_column, select, update
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.db.tables import Attempt, Event, Job, WorkItem, now
from service.http.problems import not_found
from service.jobs.state import LIVE, WAITING, State
from service.jobs.work import Work

CHUNK: Final = 500
"""Ids in one query, at most."""
ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True)
class Explanation:
    """Why a job waits, as of one revision of its row."""

    job_id: str
    revision: int
    reason: str | None
    message: str


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


def live(session: Session) -> list[tuple[Job, Attempt | None]]:
    """Jobs that have a live attempt, or are to be ended, oldest first, each with its last attempt."""
    last = and_(Attempt.job_id == Job.id, Attempt.number == Job.attempts)
    query = select(Job, Attempt).outerjoin(Attempt, last).where(_in_state(LIVE)).order_by(Job.created_at)
    return [(job, attempt) for job, attempt in session.execute(query)]


def with_last_attempts(session: Session, ids: Sequence[str]) -> dict[str, tuple[Job, Attempt | None]]:
    """The jobs with these ids, each with its last attempt; without those that do not exist."""
    last = and_(Attempt.job_id == Job.id, Attempt.number == Job.attempts)
    query = select(Job, Attempt).outerjoin(Attempt, last).where(Job.id.in_(ids), Job.deleted_at.is_(None))
    return {job.id: (job, attempt) for job, attempt in session.execute(query)}


def waiting(session: Session) -> list[Job]:
    """Jobs that wait for an attempt."""
    return list(session.scalars(select(Job).where(_in_state(WAITING)).order_by(Job.id)))


def waiting_jobs(session: Session, ids: Sequence[str]) -> Iterator[Job]:
    """Of the jobs with these ids, those that wait for an attempt."""
    for first in range(0, len(ids), CHUNK):
        chunk = ids[first : first + CHUNK]
        yield from session.scalars(select(Job).where(Job.id.in_(chunk), _in_state(WAITING)))


def waiting_revisions(session: Session) -> dict[str, int]:
    """The revision of each job that waits for an attempt, by its id."""
    query = select(Job.id, Job.revision).where(_in_state(WAITING)).order_by(Job.id)
    rows = session.execute(query)
    return {job_id: revision for job_id, revision in rows}  # noqa: C416 - a row is no pair for dict()


def explain_waiting(session: Session, explained: Sequence[Explanation]) -> None:
    """Store why jobs wait, all at once; without effect on a job that has changed since it was read."""
    same = (Job.id == bindparam("of"), Job.revision == bindparam("as_of"), _in_state(WAITING))
    change = update(cast(Table, Job.__table__)).where(*same).values(reason=bindparam("why"), message=bindparam("said"))
    rows = [{"of": e.job_id, "as_of": e.revision, "why": e.reason, "said": e.message} for e in explained]
    session.connection().execute(change, rows)


def _in_state(states: Sequence[State]) -> ColumnElement[bool]:
    """Whether a job is in one of the states, as literals: Postgres then knows from its statistics how few those are."""
    return Job.state.in_([literal_column(f"'{state}'") for state in states])


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


def deleted(session: Session) -> list[str]:
    """Ids of deleted jobs whose data has not been removed yet, the oldest deletion first."""
    return list(session.scalars(select(Job.id).where(Job.deleted_at.is_not(None)).order_by(Job.deleted_at)))


def remove(session: Session, job_id: str) -> None:
    """Delete the row of a deleted job, with its attempts and events."""
    session.execute(delete(Job).where(Job.id == job_id, Job.deleted_at.is_not(None)))


def ended_submissions(session: Session, submission_ids: Sequence[str]) -> list[str]:
    """Of these submissions, those of attempts that have ended."""
    query = select(Attempt.submission_id).where(
        Attempt.submission_id.in_(submission_ids), Attempt.ended_at.is_not(None)
    )
    return list(session.scalars(query))


def unswept(session: Session, before: datetime, limit: int) -> list[str]:
    """Submission ids of attempts that ended before a moment and that nobody has swept or is to sweep, oldest first."""
    query = select(Attempt.submission_id).join(Job, Attempt.job_id == Job.id)
    query = query.where(Attempt.ended_at < before, Attempt.swept_at.is_(None), Job.deleted_at.is_(None))
    work = (WorkItem.kind == Work.SWEEP_CHECKPOINTS, WorkItem.target == Attempt.submission_id)
    query = query.where(~exists().where(*work))
    return list(session.scalars(query.order_by(Attempt.ended_at).limit(limit)))


def by_submission(session: Session, submission_id: str) -> tuple[Job, Attempt] | None:
    """An attempt with its job; None where the job is gone."""
    query = select(Job, Attempt).join(Attempt, Attempt.job_id == Job.id)
    row = session.execute(query.where(Attempt.submission_id == submission_id, Job.deleted_at.is_(None))).first()
    return (row[0], row[1]) if row else None

"""Reading and writing jobs. Every function works inside its caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from service.auth.caller import Caller
from service.db.tables import Attempt, Event, Job, Label, now
from service.http.paging import read_moment, utc, write_cursor
from service.http.problems import ApiProblem, not_found
from service.jobs.schemas import JobView, State
from trainer.spec.job import Kind

ACTIVE = (State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING, State.CANCELLING)
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id() -> str:
    """A short id that sorts by time: eight characters of milliseconds, six of chance."""
    moment = int(now().timestamp() * 1000)
    stamp = "".join(ALPHABET[moment >> shift & 31] for shift in range(40, -1, -5))
    return f"job-{stamp}{''.join(secrets.choice(ALPHABET) for _ in range(6))}"


def get(session: Session, job_id: str) -> Job:
    """A job by its id; raises the API's 404. For a request use `visible_job`."""
    job = session.get(Job, job_id)
    if job is None or job.deleted_at is not None:
        raise not_found("job", job_id)
    return job


def visible_job(session: Session, job_id: str, caller: Caller) -> Job:
    """A job by its id, for who asks; raises the API's 404 also where it is not there for them."""
    job = get(session, job_id)
    if not caller.sees(job.owner):
        raise not_found("job", job_id)
    return job


@dataclass(frozen=True)
class Filters:
    """What a list of jobs is narrowed to; all in SQL."""

    state: Sequence[State] = ()
    kind: Kind | None = None
    owner: str | None = None
    label: Sequence[str] = ()
    """`name:value` each."""
    name_contains: str | None = None
    created_after: datetime | None = None
    visible_to: Caller | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [Job.deleted_at.is_(None)]
        if self.state:
            found.append(Job.state.in_([state.value for state in self.state]))
        if self.kind:
            found.append(Job.kind == self.kind)
        if self.owner:
            found.append(Job.owner == self.owner)
        if self.visible_to and self.visible_to.sees_only is not None:
            found.append(Job.owner == self.visible_to.sees_only)
        if self.name_contains:
            found.append(Job.name.icontains(self.name_contains, autoescape=True))
        if self.created_after:
            found.append(Job.created_at > utc(self.created_after))
        return found

    def labels(self) -> list[tuple[str, str]]:
        """Name and value of each; raises the API's 422."""
        for label in self.label:
            if ":" not in label:
                raise ApiProblem(422, "parameter_invalid", f"label: write name:value, not {label!r}")
        return [(name, value) for name, _, value in (label.partition(":") for label in self.label)]


WORKED_OUT = {"spec", "promoted_from"}
"""Of a job as it is shown: what is no column."""
SHOWN = [getattr(Job, name) for name in JobView.model_fields if name not in WORKED_OUT] + [Job.search_id, Job.trial]
"""Of a job in a list; its rows hold more, and reading JSON takes most of a list's time."""


def page(session: Session, filters: Filters, limit: int, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """What is shown of jobs, newest first, and the cursor of those that follow."""
    query = select(*SHOWN, func.coalesce(Job.resolved_spec, Job.spec).label("spec")).where(*filters.conditions())
    created_at, identity = Job.created_at, Job.id
    for name, value in filters.labels():
        label = aliased(Label)
        query = query.join(label, label.job_id == Job.id).where(label.name == name, label.value == value)
        created_at, identity = label.created_at, label.job_id  # the same, in the order of an index of this label alone
    if cursor:
        moment, job_id = read_moment(cursor)
        # The first condition alone tells the database where to begin in its index.
        query = query.where(created_at <= moment, or_(created_at < moment, identity < job_id))
    query = query.order_by(created_at.desc(), identity.desc()).limit(limit + 1)
    jobs: list[dict[str, Any]] = [{**row} for row in session.execute(query).mappings()]
    more = len(jobs) > limit
    last = jobs[limit - 1] if more else None
    return jobs[:limit], write_cursor([last["created_at"].isoformat(), last["id"]]) if last else None


def by_idempotency_key(session: Session, owner: str, key: str) -> Job | None:
    return session.scalar(select(Job).where(Job.owner == owner, Job.idempotency_key == key))


def active(session: Session) -> list[tuple[Job, Attempt | None]]:
    """Jobs with something to watch, each with its last attempt."""
    jobs = session.scalars(select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.created_at))
    return [(job, last_attempt(session, job)) for job in jobs]


def waiting(session: Session) -> list[Job]:
    """Jobs that wait for an attempt."""
    states = [State.QUEUED.value, State.RECOVERING.value]
    jobs = session.scalars(select(Job).where(Job.state.in_(states)).order_by(Job.id))
    return [job for job in jobs if job.state == State.QUEUED or not live_attempt(session, job)]


@dataclass(frozen=True)
class Crowd:
    """Jobs of one state and kind."""

    count: int
    since: datetime
    """When the one that has waited longest last began to wait for an attempt."""


def census(session: Session) -> dict[tuple[str, str], Crowd]:
    """How many jobs there are by state and kind: an index holds all of it."""
    query = select(Job.state, Job.kind, func.count(), func.min(Job.waiting_since)).where(Job.deleted_at.is_(None))
    rows = session.execute(query.group_by(Job.state, Job.kind))
    return {(state, kind): Crowd(count, since) for state, kind, count, since in rows}


def running_progress(session: Session) -> dict[str, dict[str, Any]]:
    """The progress of each running job that has told any."""
    query = select(Job.id, Job.progress).where(Job.state == State.RUNNING, Job.progress.is_not(None))
    return {row.id: row.progress for row in session.execute(query)}


def last_attempt(session: Session, job: Job) -> Attempt | None:
    return session.get(Attempt, (job.id, job.attempts)) if job.attempts else None


def live_attempt(session: Session, job: Job) -> Attempt | None:
    attempt = last_attempt(session, job)
    return attempt if attempt and attempt.ended_at is None else None


def attempts(session: Session, job_id: str) -> list[Attempt]:
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.number)))


def events(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    return list(session.scalars(query))


def images_of(session: Session, dataset_uri: str) -> int | None:
    """Readable images of a dataset, from the newest job that counted them."""
    query = select(Job.dataset_images).where(Job.dataset_uri == dataset_uri, Job.dataset_images.is_not(None))
    return session.scalar(query.order_by(Job.created_at.desc()).limit(1))


def jobs_by_id(session: Session, ids: Sequence[str]) -> dict[str, Job]:
    """Those of these jobs that there are."""
    return {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids), Job.deleted_at.is_(None)))}


def deleted(session: Session) -> list[Job]:
    """Jobs that were deleted and whose remains have not been removed yet."""
    return list(session.scalars(select(Job).where(Job.deleted_at.is_not(None)).order_by(Job.deleted_at)))


def remove(session: Session, job_id: str) -> None:
    """Delete a deleted job's row, with its attempts and events."""
    session.execute(delete(Job).where(Job.id == job_id, Job.deleted_at.is_not(None)))


def ended_submissions(session: Session, submission_ids: Sequence[str]) -> list[str]:
    """Those that are attempts of ours which have ended."""
    query = select(Attempt.submission_id).where(
        Attempt.submission_id.in_(submission_ids), Attempt.ended_at.is_not(None)
    )
    return list(session.scalars(query))


def unswept(session: Session, before: datetime, limit: int) -> list[tuple[Job, Attempt]]:
    """Attempts that ended before a moment and have not been swept, oldest first."""
    query = select(Job, Attempt).join(Attempt, Attempt.job_id == Job.id)
    query = query.where(Attempt.ended_at < before, Attempt.swept_at.is_(None), Job.deleted_at.is_(None))
    return [(job, attempt) for job, attempt in session.execute(query.order_by(Attempt.ended_at).limit(limit))]

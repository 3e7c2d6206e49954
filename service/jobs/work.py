"""Work that takes long, as rows that wait to be worked on. Every function works inside its caller's transaction.

A row is added by whoever finds out that there is work, and goes once that is done. Whoever works on it locks it with a
token that expires unless it is renewed: what a process leaves when it dies, others take up.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import ColumnElement, delete, or_, select, update
from sqlalchemy.orm import Session

from service.db.tables import WorkItem, now

LOCK_S: Final = 20.0
"""How long a lock lasts from when it was taken or renewed."""


class Work(StrEnum):
    """Kinds of work, with what the target of each is."""

    ATTEMPT = "attempt"
    """A job whose attempt is over or may be: its log, its metrics, its versions and its trials are read."""
    TRIALS = "trials"
    """A running search, whose study is read now and then."""
    SETTLE = "settle"
    """A job that a request ended while no attempt ran."""
    REMOVE_JOB = "remove_job"
    """A deleted job."""
    REMOVE_VERSION = "remove_version"
    """A deleted version, as `<name>/<version>`."""
    SWEEP_CHECKPOINTS = "sweep_checkpoints"
    """An ended attempt, by its submission id."""
    FIND_CHECKPOINTS = "find_checkpoints"
    """No target: it looks for attempts to sweep, now and then, as do the following ones for what they sweep."""
    SWEEP_RECORDS = "sweep_records"
    SWEEP_RUNS = "sweep_runs"
    COMPARE_VERSIONS = "compare_versions"
    """No target: the rows of registered versions are compared with MLflow."""


@dataclass(frozen=True)
class Claimed:
    """A row that its token locks."""

    kind: Work
    target: str
    token: str
    cursor: str
    """How far the work had come; empty at its beginning."""
    message: str
    """What went wrong so far."""
    failures: int


def add(session: Session, kind: Work, targets: Iterable[str]) -> None:
    """Add work that is due now, unless it is there already."""
    wanted = dict.fromkeys(targets)
    there = set(session.scalars(select(WorkItem.target).where(WorkItem.kind == kind, WorkItem.target.in_(wanted))))
    session.add_all(WorkItem(kind=kind.value, target=target) for target in wanted if target not in there)


def targets(session: Session, kinds: Collection[Work]) -> set[tuple[str, str]]:
    """Kind and target of all work of some kinds."""
    return {(row.kind, row.target) for row in session.execute(select(WorkItem.kind, WorkItem.target).where(_of(kinds)))}


def due(session: Session, kinds: Collection[Work], limit: int, moment: datetime) -> list[WorkItem]:
    """Work that is due at a moment and that nobody works on, the longest due first.

    The moment is of this host's clock. Where that differs from another one's, two may work on the same for a while: the
    token of the first one is no longer valid then.
    """
    free = or_(WorkItem.lock_token.is_(None), WorkItem.lock_expires_at < moment)
    query = select(WorkItem).where(WorkItem.due_at <= moment, free, _of(kinds)).order_by(WorkItem.due_at).limit(limit)
    return list(session.scalars(query))


def claim(session: Session, kinds: Collection[Work], limit: int, moment: datetime, who: str) -> list[Claimed]:
    """Lock work that is due."""
    claimed = []
    for row in due(session, kinds, limit, moment):
        row.lock_token, row.locked_by, row.lock_expires_at = secrets.token_hex(8), who, _expiry()
        claimed.append(Claimed(Work(row.kind), row.target, row.lock_token, row.cursor or "", row.message, row.failures))
    return claimed


def renew(session: Session, tokens: Sequence[str]) -> None:
    """Make locks last longer."""
    session.execute(update(WorkItem).where(WorkItem.lock_token.in_(tokens)).values(lock_expires_at=_expiry()))


def release(session: Session, tokens: Sequence[str]) -> None:
    """Give work back that is not done."""
    session.execute(update(WorkItem).where(WorkItem.lock_token.in_(tokens)).values(lock_token=None, locked_by=None))


def is_locked(session: Session, token: str) -> bool:
    """Whether a token still locks its row."""
    return session.scalar(select(WorkItem.kind).where(WorkItem.lock_token == token)) is not None


def finish(session: Session, token: str) -> None:
    """Remove what is done."""
    session.execute(delete(WorkItem).where(WorkItem.lock_token == token))


def postpone(session: Session, token: str, after: timedelta, cursor: str, message: str, failures: int) -> None:
    """Unlock work that is to go on later, from ``cursor``."""
    values = {"due_at": now() + after, "cursor": cursor, "message": message, "failures": failures}
    unlocked = {"lock_token": None, "locked_by": None, "lock_expires_at": None}
    session.execute(update(WorkItem).where(WorkItem.lock_token == token).values(values | unlocked))


def _of(kinds: Collection[Work]) -> ColumnElement[bool]:
    return WorkItem.kind.in_([kind.value for kind in kinds])


def _expiry() -> datetime:
    return now() + timedelta(seconds=LOCK_S)

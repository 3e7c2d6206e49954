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

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
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
    DESCRIBE_VERSION = "describe_version"
    """A version, as `<name>/<version>`, whose description, labels and scores are copied to MLflow."""
    DELIVER = "deliver"
    """A webhook for which something is due, by its id: what hangs holds up this webhook alone."""
    SWEEP_DELIVERIES = "sweep_deliveries"
    """No target."""
    SIGN_VERSIONS = "sign_versions"
    """No target: versions without a signature are signed."""
    EXPIRE_VERSIONS = "expire_versions"
    """No target: versions that nothing keeps by their backbones' retention rules are deleted."""
    MEASURE_VERSIONS = "measure_versions"
    """No target: versions of unknown size are measured."""


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
    """Add work that is due now. What is there already is begun anew: whoever works on it may have seen what was true
    before.
    """
    wanted = dict.fromkeys(targets)
    there = session.scalars(select(WorkItem).where(WorkItem.kind == kind, WorkItem.target.in_(wanted)))
    for row in there:
        row.due_at, row.cursor, row.lock_token = now(), None, None
        del wanted[row.target]
    session.add_all(WorkItem(kind=kind.value, target=target) for target in wanted)


def targets(session: Session, kinds: Collection[Work]) -> set[tuple[str, str]]:
    """Kind and target of all work of some kinds."""
    return {(row.kind, row.target) for row in session.execute(select(WorkItem.kind, WorkItem.target).where(_of(kinds)))}


@dataclass(frozen=True)
class Look:
    """One look for work that may begin."""

    moment: datetime
    """By this host's clock. Where that differs from the one of the process before, two may work on the same for a
    while: the token of the first one is no longer valid then."""
    longest: timedelta
    """No work waits for longer: what is due later was stored before this host's clock was set back."""
    mine: Collection[str] = ()
    """The tokens that this process still works with. Their locks hold, although they may have expired while it was
    suspended."""

    def finds(self) -> ColumnElement[bool]:
        row, moment = WorkItem, self.moment
        is_due = or_(row.due_at <= moment, row.due_at > moment + self.longest)
        expired = or_(row.lock_expires_at < moment, row.lock_expires_at > moment + timedelta(seconds=LOCK_S))
        left = and_(expired, row.lock_token.not_in(self.mine)) if self.mine else expired
        return and_(is_due, or_(row.lock_token.is_(None), left))


def due(session: Session, kinds: Collection[Work], limit: int, look: Look) -> list[WorkItem]:
    """Work that is due and that nobody works on, the longest due first."""
    query = select(WorkItem).where(_of(kinds), look.finds()).order_by(WorkItem.due_at).limit(limit)
    return list(session.scalars(query))


def claim(session: Session, kind: Work, limit: int, look: Look, who: str) -> list[Claimed]:
    """Lock work that is due."""
    claimed = []
    for row in due(session, [kind], limit, look):
        row.lock_token, row.locked_by, row.lock_expires_at = secrets.token_hex(8), who, _expiry()
        claimed.append(Claimed(kind, row.target, row.lock_token, row.cursor or "", row.message, row.failures))
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

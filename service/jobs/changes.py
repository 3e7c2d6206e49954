"""Hearing which jobs change, by server-sent events: one look a second at the database, however many listen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final

import structlog
from anyio import to_thread
from fastapi import Depends, Query, Request
from fastapi.sse import ServerSentEvent
from sqlalchemy import func, select

from service.auth.caller import Caller, still_valid
from service.context.app_state import CallerDep
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Event, Job
from service.jobs.repository import ACTIVE
from service.jobs.schemas import JobsChanged
from service.jobs.stream import Streams

log = structlog.get_logger()

LOOK_S: Final = 1.0
LONGEST_PAUSE_S: Final = 10.0
"""Between two looks while the database is away."""
ALLOWED_S: Final = 30.0
"""Between two looks at a listener's token."""
EVENTS: Final = 1000
"""Of one look."""
KEPT: Final = 600
"""Looks that found something, for listeners that are a little behind."""


@dataclass
class _Seen:
    """What has been seen of the jobs so far."""

    event: int
    """Number of the newest event."""
    progress: dict[str, str] = field(default_factory=dict)
    """Of each job that goes on, as JSON."""


def _begin(database: Database) -> _Seen:
    with database.read() as session:
        seen = _Seen(session.scalar(select(func.max(Event.id))) or 0)
    _look(database, seen)
    return seen


def _look(database: Database, seen: _Seen) -> dict[str, str]:
    """The jobs that have changed since the last look, with their owners."""
    fresh = select(Event.id, Event.job_id).where(Event.id > seen.event).order_by(Event.id).limit(EVENTS)
    going_on = select(Job.id, Job.progress).where(Job.state.in_(ACTIVE), Job.deleted_at.is_(None))
    with database.read() as session:
        events = session.execute(fresh).all()
        progress = {job_id: json.dumps(told) for job_id, told in session.execute(going_on)}
        changed = {job_id for _, job_id in events}
        changed |= {job_id for job_id, told in progress.items() if seen.progress.get(job_id) != told}
        found = session.execute(select(Job.id, Job.owner).where(Job.id.in_(changed))) if changed else ()
        owners = {job_id: owner for job_id, owner in found}  # noqa: C416 - a row is no pair for dict()
    seen.event = max([seen.event, *(number for number, _ in events)])
    seen.progress = progress
    return owners


class Changes:
    """The one who looks, in each process of the service; it looks as long as somebody listens."""

    def __init__(self, database: Database, streams: Streams) -> None:
        self._database, self._streams = database, streams
        self._kept: deque[dict[str, str]] = deque(maxlen=KEPT)
        self._told = 0
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        """Set when there is something to compare with: what changes from then on is found."""
        self._task: asyncio.Task[None] | None = None
        self.listeners = 0

    async def told_to(self, caller: Caller, once: bool = False) -> AsyncIterator[ServerSentEvent]:
        """What changes from now on of what somebody may see, until the service ends or the token does."""
        self._join()
        try:
            while not (self._ready.is_set() or self._streams.closing):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ready.wait(), LOOK_S)
            place, checked = self._told, time.monotonic()
            yield self._event(())  # whoever hears this has missed nothing from now on
            while not (once or self._streams.closing):
                if time.monotonic() - checked > ALLOWED_S:
                    checked = time.monotonic()
                    if not await self._may_listen(caller):
                        return
                if place < self._told:
                    behind = min(self._told - place, len(self._kept))
                    news = [self._kept[-number] for number in range(behind, 0, -1)]
                    place = self._told
                    seen = {job: None for each in news for job, owner in each.items() if caller.sees(owner)}
                    if seen:
                        yield self._event(seen)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), LOOK_S)
        finally:
            self._leave()

    def _event(self, jobs: Iterable[str]) -> ServerSentEvent:
        return ServerSentEvent(event="jobs", raw_data=JobsChanged(jobs=list(jobs)).model_dump_json())

    async def _may_listen(self, caller: Caller) -> bool:
        try:
            allowed = partial(still_valid, self._database, caller)
            return await to_thread.run_sync(allowed, limiter=self._streams.limiter)
        except DatabaseUnreachable:
            return True  # asked again, when it answers

    def _join(self) -> None:
        self.listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="changes of jobs")

    def _leave(self) -> None:
        self.listeners -= 1
        if self.listeners == 0 and self._task:
            self._task.cancel()
            self._task = None
            self._ready = asyncio.Event()

    async def _run(self) -> None:
        seen: _Seen | None = None
        pause = LOOK_S
        while True:
            try:
                if seen is None:
                    seen = await to_thread.run_sync(_begin, self._database, limiter=self._streams.limiter)
                    changed: dict[str, str] = {}
                else:
                    changed = await to_thread.run_sync(_look, self._database, seen, limiter=self._streams.limiter)
                pause = LOOK_S
            except DatabaseUnreachable:
                changed, pause = {}, min(2 * pause, LONGEST_PAUSE_S)
            except Exception:  # those who listen would wait for ever
                log.exception("changes_failed")
                changed, pause = {}, LONGEST_PAUSE_S
            if seen:
                self._ready.set()
            if changed:
                self._kept.append(changed)
                self._told += 1
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(pause)


async def _listening(
    request: Request,
    caller: CallerDep,
    once: Annotated[bool, Query(description="answer the first event, then end")] = False,
) -> AsyncIterator[ServerSentEvent]:
    """What the caller hears; nothing of it has begun."""
    changes: Changes = request.app.state.changes
    return changes.told_to(caller, once)


ChangesDep = Annotated[AsyncIterator[ServerSentEvent], Depends(_listening)]

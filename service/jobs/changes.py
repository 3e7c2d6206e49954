"""Server-sent events that name the jobs which have changed.

One poll a second reads the database, however many clients listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final

import structlog
from anyio import to_thread
from fastapi import Depends, Query, Request
from fastapi.sse import ServerSentEvent
from sqlalchemy import func, select

from service.auth.caller import Caller
from service.context.app_state import MayReadJobs
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Event, Job
from service.jobs.schemas import JobsChanged
from service.jobs.state import ACTIVE, State
from service.jobs.stream import Streams

log = structlog.get_logger()

POLL_S: Final = 1.0
"""Seconds between two polls."""
LONGEST_PAUSE_S: Final = 10.0
"""Longest time between two polls while the database is unreachable."""
EVENTS: Final = 1000
"""Events read by one poll, at most."""
BACKLOG: Final = 600
"""Polls with changes that are kept for listeners which are a little behind."""


@dataclass
class _LastPoll:
    """What the last poll read, for the next one to compare with."""

    event: int
    """Number of the newest event."""
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Message and progress, as JSON, of each job that waits or is active."""


def _first_poll(database: Database) -> _LastPoll:
    with database.read() as session:
        last = _LastPoll(session.scalar(select(func.max(Event.id))) or 0)
    _poll(database, last)
    return last


def _poll(database: Database, last: _LastPoll) -> dict[str, str]:
    """The owner of each job that has changed since the last poll, by job id; updates ``last``."""
    new_events = select(Event.id, Event.job_id).where(Event.id > last.event).order_by(Event.id).limit(EVENTS)
    active = select(Job.id, Job.message, Job.progress).where(Job.state.in_((State.QUEUED, *ACTIVE)))
    with database.read() as session:
        events = session.execute(new_events).all()
        said = {job_id: (message, json.dumps(value)) for job_id, message, value in session.execute(active)}
        changed = {job_id for _, job_id in events}
        changed |= {job_id for job_id, value in said.items() if last.said.get(job_id) != value}
        rows = session.execute(select(Job.id, Job.owner).where(Job.id.in_(changed))) if changed else ()
        owners = {job_id: owner for job_id, owner in rows}  # noqa: C416 - a row is no pair for dict()
    last.event = max([last.event, *(number for number, _ in events)])
    last.said = said
    return owners


class Changes:
    """Polls for changed jobs, once for each process of the service and only while a client listens."""

    def __init__(self, database: Database, streams: Streams) -> None:
        self._database, self._streams = database, streams
        self._backlog: deque[dict[str, str]] = deque(maxlen=BACKLOG)
        self._published = 0
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        """Set after the first poll: every later change is found."""
        self._task: asyncio.Task[None] | None = None
        self.listeners = 0

    async def subscribe(self, caller: Caller, once: bool = False) -> AsyncIterator[ServerSentEvent]:
        """Changes of the jobs that a caller may see, from now until the service stops."""
        self._join()
        try:
            while not (self._ready.is_set() or self._streams.closing):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ready.wait(), POLL_S)
            received = self._published
            yield self._event(())  # tells the client that it misses no change from now on
            while not (once or self._streams.closing):
                if received < self._published:
                    behind = min(self._published - received, len(self._backlog))
                    missed = [self._backlog[-number] for number in range(behind, 0, -1)]
                    received = self._published
                    visible = {job: None for each in missed for job, owner in each.items() if caller.sees(owner)}
                    if visible:
                        yield self._event(visible)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), POLL_S)
        finally:
            self._leave()

    def _event(self, jobs: Iterable[str]) -> ServerSentEvent:
        return ServerSentEvent(event="jobs", raw_data=JobsChanged(jobs=list(jobs)).model_dump_json())

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
        last: _LastPoll | None = None
        pause = POLL_S
        while True:
            try:
                if last is None:
                    last = await to_thread.run_sync(_first_poll, self._database, limiter=self._streams.limiter)
                    changed: dict[str, str] = {}
                else:
                    changed = await to_thread.run_sync(_poll, self._database, last, limiter=self._streams.limiter)
                pause = POLL_S
            except DatabaseUnreachable:
                changed, pause = {}, min(2 * pause, LONGEST_PAUSE_S)
            except Exception:  # without this task the listeners would wait for ever
                log.exception("changes_failed")
                changed, pause = {}, LONGEST_PAUSE_S
            if last:
                self._ready.set()
            if changed:
                self._backlog.append(changed)
                self._published += 1
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(pause)


async def _subscription(
    request: Request,
    caller: MayReadJobs,
    once: Annotated[bool, Query(description="send the first event, then end")] = False,
) -> AsyncIterator[ServerSentEvent]:
    """The caller's events; polling starts when the first one is asked for."""
    changes: Changes = request.app.state.changes
    return changes.subscribe(caller, once)


ChangesDep = Annotated[AsyncIterator[ServerSentEvent], Depends(_subscription)]

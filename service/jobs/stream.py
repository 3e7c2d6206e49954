"""Following one job by server-sent events: one poller for each job, however many clients read.

A reader first reads for itself, from its cursor to the present, and then takes over what the poller finds. A reader
that falls behind the poller's backlog reads for itself again, at no cost to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Header, Query, Request
from fastapi.sse import ServerSentEvent

from service.context.app_state import MayReadJobs, StateDep
from service.db.database import DatabaseUnreachable
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.log_files import UnknownPositions
from service.jobs.log_marks import Extent
from service.jobs.logs import Batch, LogFilter
from service.jobs.output_schemas import LAST_ATTEMPT, Level, LogBatch, LogView
from service.jobs.updates import StreamCursor, Update, UpdateSource, invalid_event_id

log = structlog.get_logger()

POLL_S: Final = 1.0
"""Seconds between two polls of a job that changes."""
IDLE_POLL_S: Final = 3.0
"""Longest time between two polls of a job that does not change."""
LONGEST_PAUSE_S: Final = 10.0
"""Longest time between two polls while the database is unreachable."""
LONGEST_WAIT_S: Final = 30.0
"""Longest time for which a reader waits for news in one go."""
BATCH: Final = 200
"""Log lines in one event, at most."""
BACKLOG: Final = 64
BACKLOG_BYTES: Final = 8 * 2**20
"""Updates, and bytes of log lines, that are kept for readers which are a little behind."""
THREADS: Final = 8
"""Threads that read for streams."""


class Handover(NamedTuple):
    """Where a reader can stop reading for itself and take over the poller's updates."""

    number: int
    """Of the update that comes next."""
    extent: Extent
    """Where the log lines of that update begin."""


class Hub:
    """The poller of one job, and the last updates that it found."""

    def __init__(self, source: UpdateSource, limiter: CapacityLimiter) -> None:
        self.source, self.readers = source, 0
        self.published = 0
        """Updates so far."""
        self._backlog: deque[Update] = deque()
        self._handover: Handover | None = None
        self._limiter = limiter
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"stream of {source.job_id}")

    def stop(self) -> None:
        self._task.cancel()

    @property
    def oldest(self) -> int:
        """Number of the oldest update in the backlog."""
        return self.published - len(self._backlog)

    @property
    def handover(self) -> Handover | None:
        """Where readers can take over; None before it has reached the present, and within a pass over the logs."""
        return self._handover if self._handover and self._handover.number == self.published else None

    def get(self, number: int) -> Update:
        return self._backlog[number - self.oldest]

    async def changed(self, timeout_s: float) -> None:
        """Wait for the next update, ``timeout_s`` seconds at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        cursor, pause, trouble = StreamCursor(), POLL_S, None
        while True:
            try:
                update = await to_thread.run_sync(self.source.since, cursor, limiter=self._limiter)
            except DatabaseUnreachable as error:
                update = _database_unreachable(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except Exception as error:  # without this task the readers would wait for ever
                log.exception("stream_failed", job_id=self.source.job_id)
                update = Update(trouble=f"something went wrong in the service: {type(error).__name__}")
                pause = LONGEST_PAUSE_S
            else:
                pause = POLL_S if update.is_new_to(cursor) else min(1.3 * pause, IDLE_POLL_S)
            if update.is_new_to(cursor) or update.trouble != trouble:
                self._publish(update)
            trouble = update.trouble
            cursor.advance(update)
            if cursor.logs and cursor.logs.until is None:
                first, self._handover = self._handover is None, Handover(self.published, cursor.logs.read)
                if first:
                    self.wake()
            await asyncio.sleep(0 if update.more else pause)

    def _publish(self, update: Update) -> None:
        self._backlog.append(update)
        self.published += 1
        size = sum(each.size for each in self._backlog)
        while len(self._backlog) > 1 and (len(self._backlog) > BACKLOG or size > BACKLOG_BYTES):
            size -= self._backlog.popleft().size
        self.wake()


class Streams:
    """All pollers of a process. Each lives as long as a client reads its job."""

    def __init__(self) -> None:
        self.hubs: dict[str, Hub] = {}
        self.closing = False
        self.limiter = CapacityLimiter(THREADS)
        """Keeps the threads that read for streams apart from those of other requests."""

    @property
    def readers(self) -> int:
        """Open streams that follow a job."""
        return sum(hub.readers for hub in self.hubs.values())

    def join(self, source: UpdateSource) -> Hub:
        hub = self.hubs.get(source.job_id)
        if hub is None:
            shared = UpdateSource(source.database, source.artifacts, source.job_id)
            hub = self.hubs[source.job_id] = Hub(shared, self.limiter)
        hub.readers += 1
        return hub

    def leave(self, hub: Hub) -> None:
        hub.readers -= 1
        if hub.readers == 0:
            hub.stop()
            del self.hubs[hub.source.job_id]

    def close(self) -> None:
        """End every stream: clients reconnect to another process, or to this one once it has restarted."""
        self.closing = True
        for hub in self.hubs.values():
            hub.wake()

    @contextlib.contextmanager
    def closed_by_signals(self) -> Iterator[None]:
        """Close the streams on SIGTERM and SIGINT: uvicorn stops the application after the last response."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, earlier = asyncio.get_running_loop(), dict[int, Any]()

        def handle(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(self.close)
            earlier[number](number, frame)

        for caught in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(caught)
            if callable(before):
                earlier[caught] = before
                signal.signal(caught, handle)
        try:
            yield
        finally:
            for number, before in earlier.items():
                signal.signal(number, before)


class Reader:
    """A client that follows a job."""

    def __init__(
        self,
        streams: Streams,
        source: UpdateSource,
        cursor: StreamCursor,
        log_filter: LogFilter,
        once: bool,
    ) -> None:
        """Reads the first update.

        Raises `DatabaseUnreachable`, and the API's 503 where a single answer (``once``) would lack its logs.
        """
        self._streams, self._source, self._cursor, self._log_filter = streams, source, cursor, log_filter
        self._once = once
        self._hub: Hub | None = None
        self._next_number: int | None = None
        """Of the update to take from the hub; None while the reader reads for itself."""
        self._tried: Handover | None = None
        """The handover that its last own read aimed at."""
        self._first = source.since(cursor)
        if once and self._first.trouble:
            raise ApiProblem(503, "unavailable", f"{self._first.trouble}. Try again shortly")

    def close(self) -> None:
        if self._hub:
            self._streams.leave(self._hub)
            self._hub = None

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Everything beyond its cursor, until the job has ended or the service stops."""
        update: Update | None = self._first
        while update is not None:
            for event in self._new_events(update):
                yield event
            if update.final or (self._once and not update.more):
                yield self._event("end", "{}")
                return
            update = await self._next(update)

    async def _next(self, last: Update) -> Update | None:
        """The next update; None where the stream has to end."""
        if self._once:
            return await self._read()
        hub = self._hub = self._hub or self._streams.join(self._source)
        while not self._streams.closing:
            if self._next_number is None or self._next_number < hub.oldest:
                if last.trouble or (hub.handover in (None, self._tried) and not last.more):
                    await hub.changed(POLL_S)
                # The handover is taken before the read, which ends there if it can: the hub's updates follow it.
                handover = self._tried = hub.handover
                update = await self._read(handover.extent if handover else None)
                caught_up = not self._source.logs or (handover and update.reaches(handover.extent))
                takes_over = caught_up and not update.more and not update.trouble
                self._next_number = handover.number if handover and takes_over else None
                return update
            if self._next_number < hub.published:
                self._next_number += 1
                return hub.get(self._next_number - 1)
            await hub.changed(LONGEST_WAIT_S)
        return None

    async def _read(self, until: Extent | None = None) -> Update:
        try:
            return await to_thread.run_sync(self._source.since, self._cursor, until, limiter=self._streams.limiter)
        except DatabaseUnreachable as error:
            return _database_unreachable(error)

    def _new_events(self, update: Update) -> Iterator[ServerSentEvent]:
        """What this reader has not received yet. The cursor moves with every event, whose id encodes it."""
        cursor = self._cursor
        if update.trouble or update.notice:
            yield ServerSentEvent(comment=update.trouble or update.notice)
        if not cursor.job:
            yield from self._job(update)
        for number, text in update.events:
            if number > cursor.event:
                cursor.event = number
                yield self._event("event", text)
        yield from self._job(update)
        if update.metrics and update.metrics.digest != cursor.metrics:
            cursor.metrics = update.metrics.digest
            yield self._event("metrics", update.metrics.text)
        if self._source.logs and update.batch:
            yield from self._lines(update.batch)

    def _job(self, update: Update) -> Iterator[ServerSentEvent]:
        if update.job and update.job.digest != self._cursor.job:
            self._cursor.job = update.job.digest
            yield self._event("job", update.job.text)

    def _lines(self, batch: Batch) -> Iterator[ServerSentEvent]:
        lines: list[LogView] = []
        for count, each in enumerate(batch.lines, 1):
            if self._log_filter.matches(each.line):
                lines.append(each.line)
            if len(lines) == BATCH:
                self._cursor.logs = batch.mark_after(count)
                yield self._event("log", LogBatch(lines=lines).model_dump_json())
                lines = []
        self._cursor.logs = batch.stop
        if lines:
            yield self._event("log", LogBatch(lines=lines).model_dump_json())

    def _event(self, kind: str, text: str) -> ServerSentEvent:
        return ServerSentEvent(event=kind, raw_data=text, id=self._cursor.id())


def _database_unreachable(error: DatabaseUnreachable) -> Update:
    return Update(trouble=f"the database cannot be reached now: {error}")


def open_reader(
    job_id: str,
    app_state: StateDep,
    caller: MayReadJobs,
    request: Request,
    once: Annotated[bool, Query(description="send what there is now, then end")] = False,
    logs: Annotated[bool, Query(description="send log lines too")] = True,
    level: Annotated[Level | None, Query(description="only lines of this level or above")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=LAST_ATTEMPT, description="only lines of this attempt")] = None,
    source: Annotated[str | None, Query(description="only lines of this source, `driver` or `rank-<n>`")] = None,
    search: Annotated[str | None, Query(max_length=200, description="only lines with this text, ignoring case")] = None,
    tail: Annotated[
        Annotated[int, Query(ge=0, le=5000)] | Literal["all"],
        Query(description="begin with this many of the last lines; after an event, begin with the line that follows"),
    ] = 100,
    after: Annotated[str | None, Query(description="a Last-Event-ID, for clients that cannot send the header")] = None,
    last_event_id: Annotated[str | None, Header(description="`id` of the last event received")] = None,
) -> Reader:
    """A reader of one job, at the cursor that the request names.

    Raises the API's 404 for a job that the caller may not see, and 422 for a Last-Event-ID that is none of ours.
    """
    with app_state.database.read() as session:
        repository.visible_job(session, job_id, caller)
    event_id = last_event_id or after  # a browser that reconnects sends both, and the header is newer
    cursor = StreamCursor.of(event_id) if event_id else StreamCursor()
    log_filter = LogFilter(source, level, search, attempt)
    updates = UpdateSource(
        app_state.database, app_state.artifacts, job_id, logs, None if tail == "all" else tail, log_filter
    )
    try:
        return Reader(request.app.state.streams, updates, cursor, log_filter, once)
    except UnknownPositions as error:
        raise invalid_event_id(event_id or "") from error


async def closed_reader(reader: Annotated[Reader, Depends(open_reader)]) -> AsyncIterator[Reader]:
    """A reader that is closed when its response ends, for whatever reason."""
    try:
        yield reader
    finally:
        reader.close()


ReaderDep = Annotated[Reader, Depends(closed_reader)]

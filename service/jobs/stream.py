"""Following a job by server-sent events: one poller a job, however many read.

A reader begins with reads of its own, from its place to the present, and then takes what the poller finds. One that is
too slow for that reads for itself again: it costs the others nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Header, Query, Request
from fastapi.sse import ServerSentEvent

from service.auth.caller import still_valid
from service.context.app_state import CallerDep, StateDep
from service.db.database import DatabaseUnreachable
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.log_files import UnknownPositions
from service.jobs.log_marks import Extent
from service.jobs.logs import Batch, Wanted
from service.jobs.news import Look, News, Place, unknown_place
from service.jobs.schemas import LAST_ATTEMPT, Level, LogBatch, LogView

log = structlog.get_logger()

POLL_S: Final = 1.0
IDLE_POLL_S: Final = 3.0
"""Between two looks at a job of which nothing is heard."""
LONGEST_PAUSE_S: Final = 10.0
"""Between two looks while the database is away."""
ALLOWED_S: Final = 30.0
"""Between two looks at a reader's token."""
BATCH: Final = 200
"""Lines of one event."""
KEPT: Final = 64
KEPT_BYTES: Final = 8 * 2**20
"""What of the past is kept for readers who are a little behind."""
THREADS: Final = 8


class Handover(NamedTuple):
    """Where a reader's own reading can go over to what the poller finds."""

    number: int
    """Of the news that follow."""
    extent: Extent
    """Where their log lines begin."""


class Hub:
    """The poller of one job, and what it found last."""

    def __init__(self, look: Look, limiter: CapacityLimiter) -> None:
        self.look, self.readers = look, 0
        self.told = 0
        """News so far."""
        self._kept: deque[News] = deque()
        self._handover: Handover | None = None
        self._limiter = limiter
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"stream of {look.job_id}")

    def stop(self) -> None:
        self._task.cancel()

    @property
    def oldest(self) -> int:
        """The number of the oldest news that are kept."""
        return self.told - len(self._kept)

    @property
    def handover(self) -> Handover | None:
        """Where it is now; None until it has come to the present, and while it has more lines than it tells at once."""
        return self._handover if self._handover and self._handover.number == self.told else None

    def get(self, number: int) -> News:
        return self._kept[number - self.oldest]

    async def changed(self, timeout_s: float) -> None:
        """Until there are news, or the time has passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        place, pause, trouble = Place(), POLL_S, None
        while True:
            try:
                news = await to_thread.run_sync(self.look.since, place, limiter=self._limiter)
            except DatabaseUnreachable as error:
                news = News(trouble=f"the database cannot be reached now: {error}")
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except Exception as error:  # its readers would wait for ever
                log.exception("stream_failed", job_id=self.look.job_id)
                news = News(trouble=f"something went wrong in the service: {type(error).__name__}")
                pause = LONGEST_PAUSE_S
            else:
                pause = POLL_S if news.beyond(place) else min(1.3 * pause, IDLE_POLL_S)
            if news.beyond(place) or news.trouble != trouble:
                self._tell(news)
            trouble = news.trouble
            place.pass_over(news)
            if place.logs and place.logs.until is None:
                first, self._handover = self._handover is None, Handover(self.told, place.logs.read)
                if first:
                    self.wake()
            await asyncio.sleep(0 if news.more else pause)

    def _tell(self, news: News) -> None:
        self._kept.append(news)
        self.told += 1
        size = sum(each.size for each in self._kept)
        while len(self._kept) > 1 and (len(self._kept) > KEPT or size > KEPT_BYTES):
            size -= self._kept.popleft().size
        self.wake()


class Streams:
    """The pollers of a process; they live as long as somebody reads."""

    def __init__(self) -> None:
        self.hubs: dict[str, Hub] = {}
        self.closing = False
        self.limiter = CapacityLimiter(THREADS)
        """Of threads that read for streams: other requests have their own."""

    @property
    def readers(self) -> int:
        """Streams that are open and live."""
        return sum(hub.readers for hub in self.hubs.values())

    def join(self, look: Look) -> Hub:
        hub = self.hubs.get(look.job_id)
        if hub is None:
            hub = self.hubs[look.job_id] = Hub(Look(look.database, look.artifacts, look.job_id), self.limiter)
        hub.readers += 1
        return hub

    def leave(self, hub: Hub) -> None:
        hub.readers -= 1
        if hub.readers == 0:
            hub.stop()
            del self.hubs[hub.look.job_id]

    def close(self) -> None:
        """End every stream; its reader comes back to another process, or to this one when it is up again."""
        self.closing = True
        for hub in self.hubs.values():
            hub.wake()

    @contextlib.contextmanager
    def closed_by_signals(self) -> Iterator[None]:
        """While the application lives: uvicorn waits for its answers to end before it tells the application."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, earlier = asyncio.get_running_loop(), dict[int, Any]()

        def told(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(self.close)
            earlier[number](number, frame)

        for wanted in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(wanted)
            if callable(before):
                earlier[wanted] = before
                signal.signal(wanted, told)
        try:
            yield
        finally:
            for number, before in earlier.items():
                signal.signal(number, before)


class Reader:
    """One who follows a job."""

    def __init__(
        self, streams: Streams, look: Look, place: Place, wanted: Wanted, allowed: Callable[[], bool], once: bool
    ) -> None:
        """Looks once; raises `DatabaseUnreachable`, and the API's 503 where a single answer would lack its logs."""
        self._streams, self._look, self._place, self._wanted = streams, look, place, wanted
        self._allowed, self._once = allowed, once
        self._hub: Hub | None = None
        self._next_number: int | None = None
        """Of the news to take from the hub; None while it reads for itself."""
        self._tried: Handover | None = None
        """Where its last reading for itself was to end."""
        self._checked = time.monotonic()
        self._first = look.since(place)
        if once and self._first.trouble:
            raise ApiProblem(503, "unavailable", f"{self._first.trouble}. Try again shortly")

    def close(self) -> None:
        if self._hub:
            self._streams.leave(self._hub)
            self._hub = None

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Everything from its place on, until the job has ended or it may read no longer."""
        news: News | None = self._first
        while news is not None:
            for event in self._told(news):
                yield event
            if news.over or (self._once and not news.more):
                yield self._event("end", "{}")
                return
            news = await self._next(news)

    async def _next(self, last: News) -> News | None:
        """What comes then; None where nothing more is to come from here."""
        if self._once:
            return await self._own()
        hub = self._hub = self._hub or self._streams.join(self._look)
        while not self._streams.closing and await self._may_read():
            if self._next_number is None or self._next_number < hub.oldest:
                if last.trouble or (hub.handover in (None, self._tried) and not last.more):
                    await hub.changed(POLL_S)
                # Asked before the look, which ends there if it can: what follows is taken from the hub.
                handover = self._tried = hub.handover
                news = await self._own(handover.extent if handover else None)
                met = not self._look.logs or (handover and news.reaches(handover.extent))
                self._next_number = handover.number if handover and met and not news.more and not news.trouble else None
                return news
            if self._next_number < hub.told:
                self._next_number += 1
                return hub.get(self._next_number - 1)
            await hub.changed(ALLOWED_S)
        return None

    async def _own(self, until: Extent | None = None) -> News:
        try:
            return await to_thread.run_sync(self._look.since, self._place, until, limiter=self._streams.limiter)
        except DatabaseUnreachable as error:
            return News(trouble=f"the database cannot be reached now: {error}")

    async def _may_read(self) -> bool:
        if time.monotonic() - self._checked < ALLOWED_S:
            return True
        self._checked = time.monotonic()
        try:
            return await to_thread.run_sync(self._allowed, limiter=self._streams.limiter)
        except DatabaseUnreachable:
            return True  # asked again, when it answers

    def _told(self, news: News) -> Iterator[ServerSentEvent]:
        """Those of ``news`` that are new here. The place moves with every event, and each id says where it is then."""
        place = self._place
        if news.trouble or news.notice:
            yield ServerSentEvent(comment=news.trouble or news.notice)
        if not place.job:
            yield from self._job(news)
        for number, text in news.events:
            if number > place.event:
                place.event = number
                yield self._event("event", text)
        yield from self._job(news)
        if news.metrics and news.metrics.digest != place.metrics:
            place.metrics = news.metrics.digest
            yield self._event("metrics", news.metrics.text)
        if self._look.logs and news.batch:
            yield from self._lines(news.batch)

    def _job(self, news: News) -> Iterator[ServerSentEvent]:
        if news.job and news.job.digest != self._place.job:
            self._place.job = news.job.digest
            yield self._event("job", news.job.text)

    def _lines(self, batch: Batch) -> Iterator[ServerSentEvent]:
        lines: list[LogView] = []
        for count, each in enumerate(batch.lines, 1):
            if self._wanted.has(each.line):
                lines.append(each.line)
            if len(lines) == BATCH:
                self._place.logs = batch.mark_after(count)
                yield self._event("log", LogBatch(lines=lines).model_dump_json())
                lines = []
        self._place.logs = batch.stop
        if lines:
            yield self._event("log", LogBatch(lines=lines).model_dump_json())

    def _event(self, kind: str, text: str) -> ServerSentEvent:
        return ServerSentEvent(event=kind, raw_data=text, id=self._place.id())


def opened(
    job_id: str,
    app_state: StateDep,
    caller: CallerDep,
    request: Request,
    once: Annotated[bool, Query(description="answer the present, then end")] = False,
    logs: Annotated[bool, Query(description="with log lines")] = True,
    level: Annotated[Level | None, Query(description="lines of this level and those above it")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=LAST_ATTEMPT, description="lines of this attempt alone")] = None,
    source: Annotated[str | None, Query(description="lines of `driver` or `rank-<n>` alone")] = None,
    search: Annotated[str | None, Query(max_length=200, description="lines with this text, in whatever case")] = None,
    tail: Annotated[
        Annotated[int, Query(ge=0, le=5000)] | Literal["all"],
        Query(description="begin with so many of the last lines; after an event it begins with what follows that"),
    ] = 100,
    after: Annotated[str | None, Query(description="a Last-Event-ID, where none can be sent as a header")] = None,
    last_event_id: Annotated[str | None, Header(description="`id` of the last event that was received")] = None,
) -> Reader:
    """One who may follow a job, from a place of its own."""
    with app_state.database.read() as session:
        repository.visible_job(session, job_id, caller)
    last = last_event_id or after  # a browser that has lost its connection sends both: the address as it was, and more
    place, wanted = Place.of(last) if last else Place(), Wanted(source, level, search, attempt)
    look = Look(app_state.database, app_state.artifacts, job_id, logs, None if tail == "all" else tail, wanted)
    allowed = partial(still_valid, app_state.database, caller)
    try:
        return Reader(request.app.state.streams, look, place, wanted, allowed, once)
    except UnknownPositions as error:
        raise unknown_place(last or "") from error


async def reading(reader: Annotated[Reader, Depends(opened)]) -> AsyncIterator[Reader]:
    """The same, until its answer has ended in whatever way."""
    try:
        yield reader
    finally:
        reader.close()


ReaderDep = Annotated[Reader, Depends(reading)]

"""What there is to tell of a job beyond the place where somebody is: itself, its events, metrics and log lines."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import BaseModel

from service.adapters.storage import Artifacts, OutsideRoot, StorageUnreachable
from service.db.database import Database
from service.db.tables import Job
from service.http import paging
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.log_files import LogFiles
from service.jobs.log_marks import Extent, Mark
from service.jobs.logs import Batch, Logs, Wanted
from service.jobs.reading import view
from service.jobs.schemas import EventView, MetricsTick, State

EVENTS: Final = 200
LINES: Final = 1000
"""Of one look."""


@dataclass(frozen=True)
class Told:
    """A value as JSON, and what tells it from another."""

    text: str
    digest: str

    @classmethod
    def of(cls, value: BaseModel) -> Told:
        text = value.model_dump_json()
        return cls(text, hashlib.blake2s(text.encode(), digest_size=8).hexdigest())


@dataclass
class Place:
    """How far a reader has come: what the id of an event says."""

    job: str = ""
    """Digest of the job that was told last."""
    event: int = 0
    metrics: str = ""
    logs: Mark | None = None
    """None where no line has been looked for."""

    @classmethod
    def of(cls, event_id: str) -> Place:
        """The place after an event; raises the API's 422 for an id that is none of ours."""
        with contextlib.suppress(ApiProblem):
            match paging.read_cursor(event_id):
                case [str(job), int(event), str(metrics), None] if 0 <= event < 2**63:
                    return cls(job, event, metrics)
                case [str(job), int(event), str(metrics), list(parts)] if 0 <= event < 2**63 and Mark.of(parts):
                    return cls(job, event, metrics, Mark.of(parts))
        raise unknown_place(event_id)

    def id(self) -> str:
        return paging.write_cursor([self.job, self.event, self.metrics, self.logs.parts() if self.logs else None])

    def pass_over(self, news: News) -> None:
        """Be where ``news`` end."""
        self.job = news.job.digest if news.job else self.job
        self.metrics = news.metrics.digest if news.metrics else self.metrics
        self.event = max([self.event, *(number for number, _ in news.events)])
        self.logs = news.batch.stop if news.batch else self.logs


def unknown_place(event_id: str) -> ApiProblem:
    return ApiProblem(
        422, "parameter_invalid", f"Last-Event-ID: {event_id!r} is not an event's id from here: begin without one"
    )


@dataclass(frozen=True)
class News:
    """What a look has found beyond the place where it began."""

    job: Told | None = None
    metrics: Told | None = None
    events: Sequence[tuple[int, str]] = ()
    """Number and JSON."""
    batch: Batch | None = None
    """Log lines by time; None where none were looked for."""
    more: bool = False
    """There may be more to find at once."""
    over: bool = False
    """Nothing follows: the job has ended and all its lines were found, or it was deleted."""
    trouble: str | None = None
    """What could not be read now."""
    notice: str | None = None
    """What will not be read."""

    @property
    def size(self) -> int:
        return sum(each.size for each in self.batch.lines) if self.batch else 0

    def beyond(self, place: Place) -> bool:
        """Whether there is anything to tell somebody who is there."""
        changed = (self.job and self.job.digest != place.job) or (self.metrics and self.metrics.digest != place.metrics)
        return bool(changed or self.events or self.over or (self.batch and self.batch.lines))

    def reaches(self, extent: Extent | None) -> bool:
        """Whether its lines end where ``extent`` does."""
        return extent is not None and self.batch is not None and self.batch.stop == Mark(extent)


@dataclass(frozen=True)
class Look:
    """How one job is looked at."""

    database: Database
    artifacts: Artifacts
    job_id: str
    logs: bool = True
    tail: int | None = 0
    """It begins with so many of the last lines; None for all."""
    wanted: Wanted = field(default_factory=Wanted)
    """Of the tail; a look finds every line."""

    def since(self, place: Place, until: Extent | None = None) -> News:
        """What is new beyond ``place``, of log lines perhaps only those ``until`` an extent.

        Raises `DatabaseUnreachable`, and `UnknownPositions` for a place that is none of ours. A storage that is away is
        no error.
        """
        with self.database.read() as session:
            job = session.get(Job, self.job_id)
            if job is None or job.deleted_at is not None:
                return News(over=True)
            found = repository.events(session, self.job_id, place.event, EVENTS + 1)
            events = [EventView.model_validate(event, from_attributes=True) for event in found[:EVENTS]]
        values = job.metrics
        step = int((job.progress or {}).get("step", 0))
        news = News(
            job=Told.of(view(job)),
            metrics=Told.of(MetricsTick(step=step, values=values)) if values else None,
            events=[(event.id, event.model_dump_json()) for event in events],
            more=len(found) > EVENTS,
        )
        return self._with_logs(job, news, place.logs, until) if self.logs else _ended(job, news)

    def _with_logs(self, job: Job, news: News, mark: Mark | None, until: Extent | None) -> News:
        begun = mark is not None and mark.until is not None
        try:
            batch = self._batch(job, mark, until)
        except StorageUnreachable as error:
            return replace(news, trouble=f"the artifact storage cannot be reached now: {error}")
        except OutsideRoot as error:  # its logs are not here, and will not be
            notice = None if mark else f"its logs are not served: {error}"
            return _ended(job, replace(news, batch=_nothing(mark), notice=notice))
        # More than what there was when the pass began may have been logged before the job ended.
        news = replace(news, batch=batch, more=news.more or begun or batch.stop.until is not None)
        return news if news.reaches(until) else _ended(job, news)

    def _batch(self, job: Job, mark: Mark | None, until: Extent | None) -> Batch:
        if not job.artifact_uri:
            return _nothing(mark)
        # Listed after the job was read: of one that has ended, nothing is written any more.
        logs = Logs(LogFiles(self.artifacts, job.artifact_uri), range(1, job.attempts + 1))
        if mark is None:
            mark = Mark() if self.tail is None else logs.last(self.tail, self.wanted)
        return logs.read(mark, Wanted(), LINES, until).by_time()


def _nothing(mark: Mark | None) -> Batch:
    mark = mark or Mark()
    return Batch(mark, (), mark)


def _ended(job: Job, news: News) -> News:
    """The same, and whether nothing follows."""
    return replace(news, over=State(job.state).terminal and not news.more)

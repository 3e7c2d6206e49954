"""What has changed about a job since a cursor: its state, its events, its metrics and its log lines."""

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
from service.jobs.logs import Batch, LogFilter, Logs
from service.jobs.output_schemas import MetricsTick
from service.jobs.reading import view
from service.jobs.schemas import EventView
from service.jobs.state import State

EVENTS: Final = 200
"""Events in one update, at most."""
LINES: Final = 1000
"""Log lines in one update, at most."""


@dataclass(frozen=True)
class Snapshot:
    """A value as JSON, with a digest to compare it by."""

    text: str
    digest: str

    @classmethod
    def of(cls, value: BaseModel) -> Snapshot:
        text = value.model_dump_json()
        return cls(text, hashlib.blake2s(text.encode(), digest_size=8).hexdigest())


@dataclass
class StreamCursor:
    """How far a reader of a job's stream has come. The id of each server-sent event encodes one."""

    job: str = ""
    """Digest of the job as it was last sent."""
    event: int = 0
    """Number of the last event sent."""
    metrics: str = ""
    """Digest of the metrics as they were last sent."""
    logs: Mark | None = None
    """None before log lines have been read."""

    @classmethod
    def of(cls, event_id: str) -> StreamCursor:
        """The cursor that an event's id encodes; raises the API's 422 for any other text."""
        with contextlib.suppress(ApiProblem):
            match paging.read_cursor(event_id):
                case [str(job), int(event), str(metrics), None] if 0 <= event < 2**63:
                    return cls(job, event, metrics)
                case [str(job), int(event), str(metrics), list(mark)] if 0 <= event < 2**63 and Mark.of(mark):
                    return cls(job, event, metrics, Mark.of(mark))
        raise invalid_event_id(event_id)

    def id(self) -> str:
        """The cursor as an event's id."""
        return paging.write_cursor([self.job, self.event, self.metrics, self.logs.as_json() if self.logs else None])

    def advance(self, update: Update) -> None:
        """Move to the end of an update."""
        self.job = update.job.digest if update.job else self.job
        self.metrics = update.metrics.digest if update.metrics else self.metrics
        self.event = max([self.event, *(number for number, _ in update.events)])
        self.logs = update.batch.stop if update.batch else self.logs


def invalid_event_id(event_id: str) -> ApiProblem:
    return ApiProblem(
        422,
        "parameter_invalid",
        f"Last-Event-ID: {event_id!r} is not the id of an event of this stream: connect without one",
    )


@dataclass(frozen=True)
class Update:
    """What one read of a job found beyond a cursor."""

    job: Snapshot | None = None
    metrics: Snapshot | None = None
    events: Sequence[tuple[int, str]] = ()
    """Number and JSON of each."""
    batch: Batch | None = None
    """Log lines sorted by time; None where logs were not read."""
    more: bool = False
    """Whether there may be more to read at once."""
    final: bool = False
    """Whether nothing follows: the job has ended and all its lines have been read, or the job was deleted."""
    trouble: str | None = None
    """What could not be read this time."""
    notice: str | None = None
    """What will never be readable."""

    @property
    def size(self) -> int:
        """Bytes of the log lines."""
        return sum(each.size for each in self.batch.lines) if self.batch else 0

    def is_new_to(self, cursor: StreamCursor) -> bool:
        """Whether it holds anything that a reader at ``cursor`` has not received."""
        job_changed = self.job and self.job.digest != cursor.job
        metrics_changed = self.metrics and self.metrics.digest != cursor.metrics
        return bool(job_changed or metrics_changed or self.events or self.final or (self.batch and self.batch.lines))

    def reaches(self, extent: Extent | None) -> bool:
        """Whether its log lines end exactly where ``extent`` does."""
        return extent is not None and self.batch is not None and self.batch.stop == Mark(extent)


@dataclass(frozen=True)
class UpdateSource:
    """Reads the updates of one job."""

    database: Database
    artifacts: Artifacts
    job_id: str
    logs: bool = True
    """Whether to read log lines."""
    tail: int | None = 0
    """How many of the last log lines to begin with; None for all."""
    tail_filter: LogFilter = field(default_factory=LogFilter)
    """Which lines the tail counts. An update holds lines of every kind."""

    def since(self, cursor: StreamCursor, until: Extent | None = None) -> Update:
        """What is new beyond ``cursor``; log lines no further than ``until``, where that is reachable.

        Raises `DatabaseUnreachable`, and `UnknownPositions` for a cursor that names positions which were never saved.
        An unreachable storage is reported as the update's `trouble`.
        """
        with self.database.read() as session:
            job = session.get(Job, self.job_id)
            if job is None or job.deleted_at is not None:
                return Update(final=True)
            rows = repository.events(session, self.job_id, cursor.event, EVENTS + 1)
            events = [EventView.model_validate(event, from_attributes=True) for event in rows[:EVENTS]]
            shown = view(session, job)
        values = job.metrics
        step = int((job.progress or {}).get("step", 0))
        update = Update(
            job=Snapshot.of(shown),
            metrics=Snapshot.of(MetricsTick(step=step, values=values)) if values else None,
            events=[(event.id, event.model_dump_json()) for event in events],
            more=len(rows) > EVENTS,
        )
        return self._with_logs(job, update, cursor.logs, until) if self.logs else _final_if_ended(job, update)

    def _with_logs(self, job: Job, update: Update, mark: Mark | None, until: Extent | None) -> Update:
        within_pass = mark is not None and mark.until is not None
        try:
            batch = self._batch(job, mark, until)
        except StorageUnreachable as error:
            return replace(update, trouble=f"the artifact storage cannot be reached now: {error}")
        except OutsideRoot as error:  # its logs are in another artifact root, where they will stay
            notice = None if mark else f"the logs of this job are not served: {error}"
            return _final_if_ended(job, replace(update, batch=_empty_batch(mark), notice=notice))
        # A pass ends where the logs ended when it began: the job may have logged more before it ended.
        update = replace(update, batch=batch, more=update.more or within_pass or batch.stop.until is not None)
        return update if update.reaches(until) else _final_if_ended(job, update)

    def _batch(self, job: Job, mark: Mark | None, until: Extent | None) -> Batch:
        if not job.artifact_uri:
            return _empty_batch(mark)
        # The files are listed after the job was read: a job that had ended by then logs nothing more.
        logs = Logs(LogFiles(self.artifacts, job.artifact_uri), range(1, job.attempts + 1))
        if mark is None:
            mark = Mark() if self.tail is None else logs.last(self.tail, self.tail_filter)
        return logs.read(mark, LogFilter(), LINES, until).by_time()


def _empty_batch(mark: Mark | None) -> Batch:
    mark = mark or Mark()
    return Batch(mark, (), mark)


def _final_if_ended(job: Job, update: Update) -> Update:
    """The same update, marked as final where its job has ended and everything has been read."""
    return replace(update, final=State(job.state).terminal and not update.more)

"""What there is to tell of a job beyond the place where somebody is: itself, its events, metrics and log lines."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import BaseModel

from service.adapters.storage import Artifacts, OutsideRoot, StorageUnreachable
from service.db.database import Database
from service.db.tables import Job
from service.http import paging
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.logs import Found, Logs, Mark, Wanted
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
        raise ApiProblem(
            422, "parameter_invalid", f"Last-Event-ID: {event_id!r} is not an event's id from here: begin without one"
        )

    def id(self) -> str:
        return paging.write_cursor([self.job, self.event, self.metrics, self.logs.parts() if self.logs else None])

    def pass_over(self, news: News) -> None:
        """Be where ``news`` end."""
        self.job = news.job.digest if news.job else self.job
        self.metrics = news.metrics.digest if news.metrics else self.metrics
        self.event = max([self.event, *(number for number, _ in news.events)])
        self.logs = self.logs or deepcopy(news.begin)
        if self.logs:
            for each in news.lines:
                self.logs.read[each.key] = each.position
            if not news.more and news.trouble is None:
                self.logs.forget_before(news.attempts - 1)  # the last but one may still be ending


@dataclass(frozen=True)
class News:
    """What a look has found beyond the place where it began."""

    job: Told | None = None
    metrics: Told | None = None
    events: Sequence[tuple[int, str]] = ()
    """Number and JSON."""
    begin: Mark | None = None
    """Where the lines begin."""
    lines: Sequence[Found] = ()
    attempts: int = 0
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
        return sum(each.size for each in self.lines)

    def beyond(self, place: Place) -> bool:
        """Whether there is anything to tell somebody who is there."""
        changed = (self.job and self.job.digest != place.job) or (self.metrics and self.metrics.digest != place.metrics)
        return bool(changed or self.events or self.lines or self.over)


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

    def since(self, place: Place) -> News:
        """What is new beyond ``place``; raises `DatabaseUnreachable`. A storage that is away is no error."""
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
            attempts=job.attempts,
        )
        return self._with_logs(job, news, place.logs, len(found) > EVENTS)

    def _with_logs(self, job: Job, news: News, mark: Mark | None, more_events: bool) -> News:
        # Read after the job: of one that has ended, nothing is written any more.
        ended, more, trouble, notice = State(job.state).terminal, False, None, None
        begin, lines = mark, list[Found]()
        try:
            if self.logs:
                begin, lines, more = self._lines(job, mark)
        except StorageUnreachable as error:
            trouble, ended = f"the artifact storage cannot be reached now: {error}", False
        except OutsideRoot as error:  # its logs are not here, and will not be
            begin, notice = mark or Mark(), None if mark else f"its logs are not served: {error}"
        more = more or more_events
        over = ended and not more
        return replace(news, begin=begin, lines=lines, more=more, over=over, trouble=trouble, notice=notice)

    def _lines(self, job: Job, mark: Mark | None) -> tuple[Mark, list[Found], bool]:
        """Where lines begin, those that follow, and whether there may be more."""
        if not job.artifact_uri:
            return mark or Mark(), [], False
        since = mark.since if mark else 1
        logs = Logs(self.artifacts, job.artifact_uri, range(since, job.attempts + 1))
        if mark is None:
            mark = Mark() if self.tail is None else logs.last(self.tail, self.wanted)
        lines, more = logs.after(deepcopy(mark), Wanted(), LINES)
        return mark, lines, more

"""Reading the logs of a job's attempts: a batch of lines at a time, from any mark on and from the end."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pydantic import ValidationError

from service.http.paging import bad_cursor, read_cursor, write_cursor
from service.http.problems import ApiProblem
from service.jobs.log_files import LogFiles, UnknownPositions
from service.jobs.log_marks import START, Extent, LineEnd, Mark, Position, Positions, attempt_of, since
from service.jobs.schemas import Level, LogPage, LogView

READ_AT_MOST: Final = 64 * 2**20
"""Bytes that one reading looks through before it ends early."""
GIVEN_AT_MOST: Final = 4 * 2**20
"""Bytes of lines that one reading gives."""
LEVELS: Final[dict[Level, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
SHOWN: Final = 1000
"""Characters of a line that is none of ours."""


class Found(NamedTuple):
    line: LogView
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Batch:
    """Lines that were read in one go, and the marks around them."""

    start: Mark
    lines: Sequence[Found]
    stop: Mark

    def by_time(self) -> Batch:
        """The same, by time, without the lines that `start` says were given already."""
        return replace(self, lines=in_time(self.lines)[self.start.given :])

    def mark_after(self, count: int) -> Mark:
        """The mark after so many of the lines that `by_time` gives."""
        if count == len(self.lines):
            return self.stop
        return replace(self.start, batch_end=self.stop.last, given=self.start.given + count)


@dataclass(frozen=True)
class Wanted:
    """Which lines; all of them by default."""

    source: str | None = None
    level: Level | None = None
    """This one and those above it."""
    search: str | None = None
    """Text, in whatever case."""
    attempt: int | None = None

    def has(self, line: LogView) -> bool:
        if self.attempt and line.attempt != self.attempt:
            return False
        if self.source and line.source != self.source:
            return False
        if self.level and LEVELS[line.level] < LEVELS[self.level]:
            return False
        return not self.search or self.search.casefold() in line.message.casefold()


@dataclass(frozen=True)
class Logs:
    """What some attempts of a job have logged; good for one question, as each folder is listed once.

    Every method raises `StorageUnreachable`, `OutsideRoot` and, for a mark that is none of ours, `UnknownPositions`.
    """

    files: LogFiles
    attempts: Sequence[int]
    """In order. All but the last two are final: nothing is logged there any more."""

    def read(self, mark: Mark, wanted: Wanted, limit: int, until: Extent | None = None) -> Batch:
        """The next wanted lines by attempt, then source. Source by source they are in order.

        It ends early, with `stop` within a pass, at ``limit`` lines and at so many bytes. A pass that begins here goes
        to the present, or to ``until`` where that is beyond ``mark``. What has not grown since ``mark`` is not read.
        """
        if mark.until is None:
            reachable = until is not None and self._covers(until, mark.read)
            mark = Mark(mark.read, until if reachable else self._present(mark.read, wanted))
        found: list[Found] = []
        looked = given = 0
        for last, raw in self._forwards(mark, wanted):
            line = _parsed(last, raw)
            looked += len(raw)
            if wanted.has(line):
                found.append(Found(line, len(raw)))
                given += len(raw)
            full = len(found) >= limit or looked > READ_AT_MOST or given > GIVEN_AT_MOST
            if last == mark.batch_end or (full and not mark.given):  # a batch that is read again ends where it did
                return Batch(mark, found, Mark(mark.read, mark.until, last))
        return Batch(mark, found, Mark(mark.until or mark.read))

    def last(self, count: int, wanted: Wanted) -> Mark:
        """From where the last ``count`` wanted lines follow, by time; fewer where it would look back too far."""
        end = self._present(Extent(), wanted)
        newest: list[tuple[float, int, str, Position]] = []  # a heap, the oldest first
        ends: dict[str, Position] = {}
        looked = given = 0
        for attempt in reversed(self.attempts) if count else ():
            if attempt < end.since and (len(newest) >= count or looked > READ_AT_MOST):
                break
            for source in self._sources(attempt, wanted):
                ends[f"{attempt}/{source}"] = self._end(attempt, source)
                for begin, raw in self.files.lines_backwards(attempt, source):
                    line = _parsed((attempt, source, *begin), raw)
                    full = len(newest) >= count or given > GIVEN_AT_MOST
                    if looked > READ_AT_MOST or (full and (not newest or line.time < newest[0][0])):
                        break
                    looked += len(raw)
                    if wanted.has(line):
                        given += len(raw)
                        entry = (line.time, attempt, source, begin)
                        (heapq.heappushpop if full else heapq.heappush)(newest, entry)
        if not newest:
            return Mark(end)
        for _, attempt, source, begin in newest:
            key = f"{attempt}/{source}"
            ends[key] = min(ends[key], begin)
        first = min(end.since, *(attempt for _, attempt, _, _ in newest))
        return Mark(self._extent(first, since(first, ends), end), end)

    def _forwards(self, mark: Mark, wanted: Wanted) -> Iterator[tuple[LineEnd, bytes]]:
        """Every whole line from a mark to the end of its pass, with where it ends."""
        if mark.until is None or mark.until == mark.read:
            return
        read, until = self._positions(mark.read), self._positions(mark.until)
        passed = mark.last or (0, "", *START)
        for attempt in self.attempts:
            if attempt < max(mark.read.since, passed[0]):
                continue
            final = attempt < mark.until.since
            for source in self._sources(attempt, wanted, () if final else until):
                if (attempt, source) < passed[:2]:
                    continue
                key = f"{attempt}/{source}"
                start = read.get(key, START)
                if (attempt, source) == passed[:2]:
                    start = max(start, passed[2:])
                stop = self._end(attempt, source) if final else until.get(key, START)
                for (number, size), raw in self.files.lines(attempt, source, start, stop):
                    yield (attempt, source, number, size), raw

    def _sources(self, attempt: int, wanted: Wanted, also: Iterable[str] = ()) -> list[str]:
        """An attempt's wanted sources in order: those that have files, and those of the keys ``also``."""
        if wanted.attempt not in {None, attempt}:
            return []
        beyond = {key.partition("/")[2] for key in also if attempt_of(key) == attempt}
        return sorted(name for name in self.files.chunks(attempt).keys() | beyond if wanted.source in {None, "", name})

    def _end(self, attempt: int, source: str) -> Position:
        """Where a source's log ends now, perhaps within a line."""
        chunks = self.files.chunks(attempt).get(source)
        return (chunks[-1].number, chunks[-1].size) if chunks else START

    def _present(self, read: Extent, wanted: Wanted) -> Extent:
        """How far the wanted logs reach now, and all that is in ``read``."""
        last_two = self.attempts[-2:]
        first = max([read.since, *last_two[:1]])
        before = self._positions(read)
        positions = dict(since(first, before))
        for attempt in last_two:
            for source in self._sources(attempt, wanted) if attempt >= first else ():
                key = f"{attempt}/{source}"
                positions[key] = max(positions.get(key, START), self._end(attempt, source))
        return read if (first, positions) == (read.since, before) else self._extent(first, positions, read)

    def _extent(self, first: int, positions: Positions, other: Extent) -> Extent:
        """An extent that is short enough for a mark that has ``other`` too."""
        for name in dict.fromkeys((None, other.saved)):
            saved = self._saved(name)
            extent = Extent(first, {key: at for key, at in positions.items() if saved.get(key) != at}, name)
            if Mark(other, extent).is_short:
                return extent
        return Extent(first, {}, self.files.save(positions))

    def _covers(self, extent: Extent, other: Extent) -> bool:
        """Whether all of ``other`` is in ``extent``."""
        positions = self._positions(extent)
        return extent.since >= other.since and all(
            at <= positions.get(key, START) for key, at in since(extent.since, self._positions(other)).items()
        )

    def _positions(self, extent: Extent) -> Positions:
        return since(extent.since, {**self._saved(extent.saved), **extent.changes})

    def _saved(self, name: str | None) -> Positions:
        return self.files.saved(name) if name else {}


def page(logs: Logs, wanted: Wanted, cursor: str | None, limit: int, tail: int | None) -> LogPage:
    """Lines by attempt, then source, then chunk; the last ``tail`` ones, without a cursor, by time.

    The cursor is a mark, so it stays good while the logs grow.
    """
    if cursor and tail is not None:
        raise ApiProblem(422, "parameter_invalid", f"tail: {tail} goes without a cursor, from which lines follow")
    mark = Mark.of(read_cursor(cursor)) if cursor else Mark()
    if mark is None:
        raise bad_cursor(cursor or "")
    if tail == 0:
        return LogPage(items=[], next_cursor=write_cursor(logs.last(0, wanted).parts()))
    if tail:
        batch = logs.read(logs.last(tail, wanted), wanted, tail)
        lines = in_time(batch.lines)
    else:
        try:
            batch = logs.read(mark, wanted, limit)
            lines = [*batch.lines]
            if mark.until and not batch.stop.until:  # an earlier page's pass, which has ended: and then to the present
                batch = logs.read(batch.stop, wanted, limit - len(lines))
                lines += batch.lines
        except UnknownPositions as error:
            raise bad_cursor(cursor or "") from error
    more = batch.stop.until is not None
    return LogPage(items=[each.line for each in lines], next_cursor=write_cursor(batch.stop.parts()), more=more)


def in_time(found: Sequence[Found]) -> list[Found]:
    """Lines by time; those of one source stay in their order."""
    sources: dict[tuple[int, str], list[Found]] = {}
    for each in found:
        sources.setdefault((each.line.attempt, each.line.source), []).append(each)
    return list(heapq.merge(*sources.values(), key=lambda each: each.line.time))


def _parsed(at: LineEnd, raw: bytes) -> LogView:
    attempt, source, *_ = at
    try:
        return LogView.model_validate_json(raw[:-1] + b',"attempt":%d}' % attempt)
    except ValidationError:  # a damaged file: shown, so that somebody sees it, and no obstacle to the rest
        text = raw.decode(errors="backslashreplace")[:SHOWN]
        return LogView(time=0.0, level="warning", source=source, message=text, attempt=attempt)

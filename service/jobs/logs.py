"""Reads the logs of a job's attempts, a batch of lines at a time, from a mark onwards or from the end."""

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
from service.jobs.output_schemas import Level, LogPage, LogView

READ_AT_MOST: Final = 64 * 2**20
"""Bytes that one read scans before it ends early."""
RETURN_AT_MOST: Final = 4 * 2**20
"""Bytes of lines that one read returns before it ends early."""
LEVELS: Final[dict[Level, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
DAMAGED_LINE: Final = 1000
"""Characters shown of a line that is not a valid log line."""


class SizedLine(NamedTuple):
    """A log line and the bytes that it takes in its file."""

    line: LogView
    size: int


@dataclass(frozen=True)
class Batch:
    """Lines from one read, and the marks where they begin and end."""

    start: Mark
    lines: Sequence[SizedLine]
    stop: Mark

    def by_time(self) -> Batch:
        """The same batch sorted by time, without the lines that `start` records as delivered."""
        return replace(self, lines=in_time(self.lines)[self.start.delivered :])

    def mark_after(self, count: int) -> Mark:
        """The mark after the first ``count`` lines of a batch sorted by time."""
        if count == len(self.lines):
            return self.stop
        return replace(self.start, batch_end=self.stop.last, delivered=self.start.delivered + count)


@dataclass(frozen=True)
class LogFilter:
    """Selects log lines; all of them by default."""

    source: str | None = None
    level: Level | None = None
    """The lowest level to include."""
    search: str | None = None
    """Text that the message contains, ignoring case."""
    attempt: int | None = None

    def matches(self, line: LogView) -> bool:
        if self.attempt and line.attempt != self.attempt:
            return False
        if self.source and line.source != self.source:
            return False
        if self.level and LEVELS[line.level] < LEVELS[self.level]:
            return False
        return not self.search or self.search.casefold() in line.message.casefold()


@dataclass(frozen=True)
class Logs:
    """The logs of some attempts of a job. Make a new one for each request: each folder is listed once.

    Every method raises `StorageUnreachable`, `OutsideRoot`, and `UnknownPositions` for a mark whose saved positions do
    not exist.
    """

    files: LogFiles
    attempts: Sequence[int]
    """In ascending order. The logs of all but the last two no longer grow."""

    def read(self, mark: Mark, log_filter: LogFilter, limit: int, until: Extent | None = None) -> Batch:
        """The next matching lines by attempt, then source; the lines of each source stay in order.

        The read ends early, with `stop` within a pass, after ``limit`` lines or a number of bytes. A pass that begins
        here goes to the present, or to ``until`` where that is beyond ``mark``. Logs that have not grown since ``mark``
        are not read.
        """
        if mark.until is None:
            reachable = until is not None and self._covers(until, mark.read)
            mark = Mark(mark.read, until if reachable else self._present(mark.read, log_filter))
        found: list[SizedLine] = []
        scanned = returned = 0
        for last, raw in self._forwards(mark, log_filter):
            line = _parsed(last, raw)
            scanned += len(raw)
            if log_filter.matches(line):
                found.append(SizedLine(line, len(raw)))
                returned += len(raw)
            full = len(found) >= limit or scanned > READ_AT_MOST or returned > RETURN_AT_MOST
            if last == mark.batch_end or (full and not mark.delivered):  # a batch read again ends at the same line
                return Batch(mark, found, Mark(mark.read, mark.until, last))
        return Batch(mark, found, Mark(mark.until or mark.read))

    def last(self, count: int, log_filter: LogFilter) -> Mark:
        """The mark that the last ``count`` matching lines follow, by time; fewer lines where it would scan too much."""
        end = self._present(Extent(), log_filter)
        newest: list[tuple[float, int, str, Position]] = []  # a heap, the oldest first
        ends: dict[str, Position] = {}
        scanned = returned = 0
        for attempt in reversed(self.attempts) if count else ():
            if attempt < end.since and (len(newest) >= count or scanned > READ_AT_MOST):
                break
            for source in self._sources(attempt, log_filter):
                ends[f"{attempt}/{source}"] = self._end(attempt, source)
                for begin, raw in self.files.lines_backwards(attempt, source):
                    line = _parsed((attempt, source, *begin), raw)
                    full = len(newest) >= count or returned > RETURN_AT_MOST
                    if scanned > READ_AT_MOST or (full and (not newest or line.time < newest[0][0])):
                        break
                    scanned += len(raw)
                    if log_filter.matches(line):
                        returned += len(raw)
                        entry = (line.time, attempt, source, begin)
                        (heapq.heappushpop if full else heapq.heappush)(newest, entry)
        if not newest:
            return Mark(end)
        for _, attempt, source, begin in newest:
            key = f"{attempt}/{source}"
            ends[key] = min(ends[key], begin)
        first = min(end.since, *(attempt for _, attempt, _, _ in newest))
        return Mark(self._extent(first, since(first, ends), end), end)

    def _forwards(self, mark: Mark, log_filter: LogFilter) -> Iterator[tuple[LineEnd, bytes]]:
        """Every whole line from a mark to the end of its pass, with the position where the line ends."""
        if mark.until is None or mark.until == mark.read:
            return
        read, until = self._positions(mark.read), self._positions(mark.until)
        passed = mark.last or (0, "", *START)
        for attempt in self.attempts:
            if attempt < max(mark.read.since, passed[0]):
                continue
            final = attempt < mark.until.since
            for source in self._sources(attempt, log_filter, () if final else until):
                if (attempt, source) < passed[:2]:
                    continue
                key = f"{attempt}/{source}"
                start = read.get(key, START)
                if (attempt, source) == passed[:2]:
                    start = max(start, passed[2:])
                stop = self._end(attempt, source) if final else until.get(key, START)
                for (number, size), raw in self.files.lines(attempt, source, start, stop):
                    yield (attempt, source, number, size), raw

    def _sources(self, attempt: int, log_filter: LogFilter, also: Iterable[str] = ()) -> list[str]:
        """An attempt's matching sources in order: those that have files, and those that ``also`` names."""
        if log_filter.attempt not in {None, attempt}:
            return []
        sources = self.files.chunks(attempt).keys() | {
            key.partition("/")[2] for key in also if attempt_of(key) == attempt
        }
        return sorted(name for name in sources if log_filter.source in {None, "", name})

    def _end(self, attempt: int, source: str) -> Position:
        """Where a source's log ends now, possibly within a line."""
        chunks = self.files.chunks(attempt).get(source)
        return (chunks[-1].number, chunks[-1].size) if chunks else START

    def _present(self, read: Extent, log_filter: LogFilter) -> Extent:
        """How far the matching logs reach now; it includes all of ``read``."""
        last_two = self.attempts[-2:]
        first = max([read.since, *last_two[:1]])
        before = self._positions(read)
        positions = dict(since(first, before))
        for attempt in last_two:
            for source in self._sources(attempt, log_filter) if attempt >= first else ():
                key = f"{attempt}/{source}"
                positions[key] = max(positions.get(key, START), self._end(attempt, source))
        return read if (first, positions) == (read.since, before) else self._extent(first, positions, read)

    def _extent(self, first: int, positions: Positions, other: Extent) -> Extent:
        """An extent short enough to share a mark with ``other``; saves positions to a file where they are too many."""
        for name in dict.fromkeys((None, other.saved)):
            saved = self._saved(name)
            extent = Extent(first, {key: at for key, at in positions.items() if saved.get(key) != at}, name)
            if Mark(other, extent).is_short:
                return extent
        return Extent(first, {}, self.files.save(positions))

    def _covers(self, extent: Extent, other: Extent) -> bool:
        """Whether ``extent`` includes all of ``other``."""
        positions = self._positions(extent)
        return extent.since >= other.since and all(
            at <= positions.get(key, START) for key, at in since(extent.since, self._positions(other)).items()
        )

    def _positions(self, extent: Extent) -> Positions:
        return since(extent.since, {**self._saved(extent.saved), **extent.changes})

    def _saved(self, name: str | None) -> Positions:
        return self.files.saved(name) if name else {}


def page(logs: Logs, log_filter: LogFilter, cursor: str | None, limit: int, tail: int | None) -> LogPage:
    """A page of lines by attempt, then source, then chunk; with ``tail``, the last lines by time.

    The cursor encodes a mark, so it stays valid while the logs grow. Raises the API's 422 for an invalid cursor, or for
    ``tail`` with a cursor.
    """
    if cursor and tail is not None:
        raise ApiProblem(
            422, "parameter_invalid", f"tail: {tail} cannot be combined with a cursor: leave one of them out"
        )
    mark = Mark.of(read_cursor(cursor)) if cursor else Mark()
    if mark is None:
        raise bad_cursor(cursor or "")
    if tail == 0:
        return LogPage(items=[], next_cursor=write_cursor(logs.last(0, log_filter).as_json()))
    if tail:
        batch = logs.read(logs.last(tail, log_filter), log_filter, tail)
        lines = in_time(batch.lines)
    else:
        try:
            batch = logs.read(mark, log_filter, limit)
            lines = [*batch.lines]
            if mark.until and not batch.stop.until:  # an earlier page's pass has ended: read on to the present
                batch = logs.read(batch.stop, log_filter, limit - len(lines))
                lines += batch.lines
        except UnknownPositions as error:
            raise bad_cursor(cursor or "") from error
    more = batch.stop.until is not None
    return LogPage(items=[each.line for each in lines], next_cursor=write_cursor(batch.stop.as_json()), more=more)


def in_time(lines: Sequence[SizedLine]) -> list[SizedLine]:
    """Lines sorted by time; those of one source keep their order."""
    sources: dict[tuple[int, str], list[SizedLine]] = {}
    for each in lines:
        sources.setdefault((each.line.attempt, each.line.source), []).append(each)
    return list(heapq.merge(*sources.values(), key=lambda each: each.line.time))


def _parsed(at: LineEnd, raw: bytes) -> LogView:
    attempt, source, *_ = at
    try:
        return LogView.model_validate_json(raw[:-1] + b',"attempt":%d}' % attempt)
    except ValidationError:  # a damaged file: its text is shown, and the lines after it are still read
        text = raw.decode(errors="backslashreplace")[:DAMAGED_LINE]
        return LogView(time=0.0, level="warning", source=source, message=text, attempt=attempt)

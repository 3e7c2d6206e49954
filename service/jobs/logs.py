"""Reading the log chunks of a job's attempts, a bounded piece at a time, forwards and from the end."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from service.adapters.storage import Artifacts, StorageUnreachable
from service.http.paging import bad_cursor, read_cursor, write_cursor
from service.http.problems import ApiProblem
from service.jobs.schemas import Level, LogPage, LogView
from trainer.protocol.names import log_folder

PIECE: Final = 2**20
"""Bytes of a chunk that are in memory at a time; a line that is longer is too."""
READ_AT_MOST: Final = 64 * 2**20
"""Bytes that one reading looks through before it ends early."""
GIVEN_AT_MOST: Final = 4 * 2**20
"""Bytes of lines that one reading gives."""
LEVELS: Final[dict[Level, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
SHOWN: Final = 1000
"""Characters of a line that is none of ours."""

Position = list[int]
"""A chunk's number and the bytes of it that were read: what follows is next. Positions of a source sort."""


@dataclass
class Mark:
    """How far the logs were read."""

    since: int = 1
    """Attempts before this one are done with."""
    read: dict[str, Position] = field(default_factory=dict)
    """By `<attempt>/<source>`; one that is not there begins at its first line."""

    @classmethod
    def of(cls, value: Any) -> Mark | None:
        """From the JSON that `parts` gave; None for anything else."""
        match value:
            case [int(since), dict(read)] if since >= 1 and all(_is_position(*item) for item in read.items()):
                return cls(since, read)
        return None

    def parts(self) -> list[Any]:
        return [self.since, self.read]

    def covers(self, line: Found) -> bool:
        """Whether it was read already."""
        return line.attempt < self.since or line.position <= self.read.get(line.key, [0, 0])

    def forget_before(self, attempt: int) -> None:
        """Be done with earlier attempts."""
        if attempt > self.since:
            self.since = attempt
            self.read = {key: at for key, at in self.read.items() if int(key.partition("/")[0]) >= attempt}


class Found(NamedTuple):
    """A line and what follows it."""

    key: str
    position: Position
    line: LogView
    size: int
    """Bytes."""

    @property
    def attempt(self) -> int:
        return self.line.attempt


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


class _Chunk(NamedTuple):
    number: int
    size: int


@dataclass(frozen=True)
class Logs:
    """What some attempts of a job have logged. Every method raises `StorageUnreachable` and `OutsideRoot`."""

    artifacts: Artifacts
    folder: str
    """The run's artifact folder."""
    attempts: Sequence[int]
    """In order."""

    def after(self, mark: Mark, wanted: Wanted, limit: int) -> tuple[list[Found], bool]:
        """The next wanted lines by attempt, then source, and whether it ended early; ``mark`` is advanced past them.

        It ends early at ``limit`` lines and at so many bytes; what has not grown since ``mark`` is not fetched.
        """
        found: list[Found] = []
        looked = given = 0
        for key, position, raw in self._forwards(mark, wanted):
            mark.read[key] = position
            line = _parsed(key, raw)
            looked += len(raw)
            if wanted.has(line):
                found.append(Found(key, position, line, len(raw)))
                given += len(raw)
            if len(found) >= limit or looked > READ_AT_MOST or given > GIVEN_AT_MOST:
                return found, True
        return found, False

    def last(self, count: int, wanted: Wanted) -> Mark:
        """From where the last ``count`` wanted lines follow, by time; fewer where it would look back too far."""
        mark = Mark()
        still_read = max(self.attempts, default=1) - 1  # the last but one may still be ending
        newest: list[tuple[float, str, Position]] = []  # a heap, the oldest first
        looked = given = 0
        for attempt in reversed(self.attempts):
            if attempt < still_read and (len(newest) >= count or looked > READ_AT_MOST):
                break
            mark.since = attempt
            for key, chunks in self._sources(attempt, wanted):
                mark.read[key] = [chunks[0].number, 0]
                for index, (before, after, raw) in enumerate(self._backwards(key, chunks)):
                    if index == 0:
                        mark.read[key] = after  # at least the end is known of every source
                    line = _parsed(key, raw)
                    full = len(newest) >= count or given > GIVEN_AT_MOST
                    if looked > READ_AT_MOST or (full and (not newest or line.time < newest[0][0])):
                        break
                    looked += len(raw)
                    if wanted.has(line):
                        given += len(raw)
                        (heapq.heappushpop if full else heapq.heappush)(newest, (line.time, key, before))
        for _, key, before in newest:
            mark.read[key] = min(mark.read[key], before)
        return mark

    def _forwards(self, mark: Mark, wanted: Wanted) -> Iterator[tuple[str, Position, bytes]]:
        """Every whole line after a mark, with what follows it."""
        for attempt in self.attempts:
            for key, chunks in self._sources(attempt, wanted) if attempt >= mark.since else ():
                number_read, bytes_read = mark.read.get(key, [0, 0])
                for chunk in chunks:
                    if chunk.number >= number_read:
                        start = bytes_read if chunk.number == number_read else 0
                        yield from self._lines(key, chunk, start)

    def _lines(self, key: str, chunk: _Chunk, start: int) -> Iterator[tuple[str, Position, bytes]]:
        while start < chunk.size:
            piece = self._read(key, chunk.number, start, min(start + PIECE, chunk.size))
            if b"\n" not in piece:
                piece = self._read(key, chunk.number, start, chunk.size)
            lines = piece.split(b"\n")[:-1]  # what follows the last line end is still being written
            if not lines:
                return
            for raw in lines:
                start += len(raw) + 1
                yield key, [chunk.number, start], raw

    def _backwards(self, key: str, chunks: Sequence[_Chunk]) -> Iterator[tuple[Position, Position, bytes]]:
        """Every whole line from the last to the first, between its positions."""
        for number, size in reversed(chunks):
            start, rest, whole = size, b"", False
            while start > 0:
                first = max(0, start - PIECE)
                rest = self._read(key, number, first, start) + rest
                start = first
                if not whole:
                    rest = rest[: rest.rfind(b"\n") + 1]
                    whole = bool(rest)
                end = start + len(rest)
                lines = rest.split(b"\n")[:-1]
                rest = b""
                if lines and start > 0:  # the first may have begun earlier
                    rest = lines.pop(0) + b"\n"
                for raw in reversed(lines):
                    begin = end - len(raw) - 1
                    yield [number, begin], [number, end], raw
                    end = begin

    def _sources(self, attempt: int, wanted: Wanted) -> list[tuple[str, list[_Chunk]]]:
        """An attempt's wanted sources with their chunks, all in order."""
        found = chunks_of(self.artifacts, self.folder, attempt)
        return [(f"{attempt}/{name}", found[name]) for name in sorted(found) if wanted.source in {None, "", name}]

    def _read(self, key: str, number: int, start: int, stop: int) -> bytes:
        attempt, _, source = key.partition("/")
        return self.artifacts.read(self.folder, _file(int(attempt), source, number), start, stop) or b""


def page(logs: Logs, wanted: Wanted, cursor: str | None, limit: int, tail: int | None) -> LogPage:
    """Lines by attempt, then source, then chunk; the last ``tail`` ones, without a cursor, by time.

    The cursor names the bytes read of each source, so it stays good while the logs grow.
    """
    if cursor and tail is not None:
        raise ApiProblem(422, "parameter_invalid", f"tail: {tail} goes without a cursor, from which lines follow")
    if tail is not None:
        mark, limit = logs.last(tail, wanted), max(1, tail)
    else:
        mark = _mark(cursor)
    found, more = logs.after(mark, wanted, limit) if tail != 0 else ([], False)
    lines = in_time(found) if tail else found
    return LogPage(items=[each.line for each in lines], next_cursor=write_cursor(mark.parts()), more=more)


def in_time(found: Sequence[Found]) -> list[Found]:
    """Lines by time; those of one source stay in their order."""
    sources: dict[str, list[Found]] = {}
    for each in found:
        sources.setdefault(each.key, []).append(each)
    return list(heapq.merge(*sources.values(), key=lambda each: each.line.time))


@dataclass(frozen=True)
class WholeLog:
    """Everything a source of an attempt has logged, as one file of JSON lines."""

    artifacts: Artifacts
    folder: str
    attempt: int
    source: str
    chunks: Sequence[_Chunk]

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Its bytes from ``start`` up to ``stop``, a bounded piece at a time."""
        offset = 0
        for number, size in self.chunks:
            name = _file(self.attempt, self.source, number)
            begin, end = max(0, start - offset), min(size, stop - offset)
            for first in range(begin, end, PIECE):
                data = self.artifacts.read(self.folder, name, first, min(first + PIECE, end))
                if data is None:
                    raise StorageUnreachable(f"{self.folder}/{name}: it has gone meanwhile")
                yield data
            offset += size


def whole(artifacts: Artifacts, folder: str, attempt: int, source: str) -> WholeLog | None:
    """One source's log as it is now; None where it has logged nothing."""
    chunks = chunks_of(artifacts, folder, attempt).get(source)
    return WholeLog(artifacts, folder, attempt, source, chunks) if chunks else None


def chunks_of(artifacts: Artifacts, folder: str, attempt: int) -> dict[str, list[_Chunk]]:
    """The chunks of each source, in order."""
    found: dict[str, list[_Chunk]] = {}
    for file, size in artifacts.sizes(folder, log_folder(attempt)).items():
        name, _, rest = file.partition(".")
        number, _, ending = rest.partition(".")
        if ending == "jsonl" and number.isdecimal():
            found.setdefault(name, []).append(_Chunk(int(number), size))
    return {name: sorted(chunks) for name, chunks in found.items()}


def _file(attempt: int, source: str, number: int) -> str:
    return f"{log_folder(attempt)}/{source}.{number:04d}.jsonl"


def _parsed(key: str, raw: bytes) -> LogView:
    attempt, _, source = key.partition("/")
    try:
        return LogView.model_validate_json(raw[:-1] + b',"attempt":%s}' % attempt.encode())
    except ValidationError:  # a damaged file: shown, so that somebody sees it, and no obstacle to the rest
        text = raw.decode(errors="backslashreplace")[:SHOWN]
        return LogView(time=0.0, level="warning", source=source, message=text, attempt=int(attempt))


def _mark(cursor: str | None) -> Mark:
    mark = Mark.of(read_cursor(cursor)) if cursor else Mark()
    if mark is None:
        raise bad_cursor(cursor or "")
    return mark


def _is_position(key: str, value: object) -> bool:
    """Whether this is an attempt's source with a chunk's number and a number of bytes."""
    numbers = (
        isinstance(value, list) and len(value) == 2 and all(type(number) is int and number >= 0 for number in value)
    )
    return numbers and re.fullmatch(r"[1-9][0-9]{0,8}/.+", key) is not None

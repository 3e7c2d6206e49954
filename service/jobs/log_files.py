"""The chunk files of a run's logs, read forwards or backwards in pieces of bounded size."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from service.adapters.storage import Artifacts, StorageUnreachable
from service.jobs.log_marks import Position, Positions
from trainer.protocol.names import LOG_POSITIONS, log_folder

PIECE: Final = 2**20
"""Bytes of a chunk in memory at a time; a longer line is read whole."""
REMEMBERED: Final = 16
"""Saved positions that a process caches: following a job reads the same ones again and again."""


class UnknownPositions(LookupError):
    """A mark names saved positions that do not exist."""


class Chunk(NamedTuple):
    number: int
    size: int
    """Bytes."""


@dataclass(frozen=True)
class LogFiles:
    """A run's log files. Each attempt's folder is listed once.

    Every method raises `StorageUnreachable` and `OutsideRoot`.
    """

    artifacts: Artifacts
    folder: str
    """The run's artifact folder."""
    _listed: dict[int, dict[str, list[Chunk]]] = field(default_factory=dict, init=False, repr=False)

    def chunks(self, attempt: int) -> Mapping[str, Sequence[Chunk]]:
        """The chunks of each source of an attempt, in order."""
        if attempt not in self._listed:
            found: dict[str, list[Chunk]] = {}
            for file, size in self.artifacts.sizes(self.folder, log_folder(attempt)).items():
                name, _, rest = file.partition(".")
                number, _, ending = rest.partition(".")
                if ending == "jsonl" and number.isdecimal():
                    found.setdefault(name, []).append(Chunk(int(number), size))
            self._listed[attempt] = {name: sorted(chunks) for name, chunks in found.items()}
        return self._listed[attempt]

    def lines(self, attempt: int, source: str, start: Position, stop: Position) -> Iterator[tuple[Position, bytes]]:
        """Every whole line that ends after ``start`` and not after ``stop``, with the position where it ends.

        Raises `StorageUnreachable` for a log that ends before ``stop``: another process has read it when it was longer.
        """
        if start >= stop:
            return
        chunks = self.chunks(attempt).get(source, ())
        ends_before_start = any(number == start[0] and size < start[1] for number, size in chunks)
        if ends_before_start or not chunks or chunks[-1] < stop:
            raise StorageUnreachable(f"{self.folder}: the log of {source}, attempt {attempt}, is shorter than it was")
        for number, size in chunks:
            if start[0] <= number <= stop[0] and size:
                first = start[1] if number == start[0] else 0
                last = stop[1] if number == stop[0] else None
                if last is None or first < last:
                    for end, raw in self._chunk_lines(_file(attempt, source, number), first, last):
                        yield (number, end), raw

    def _chunk_lines(self, file: str, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
        """Lines of one chunk. Without ``stop``, to its end, even if it has grown since its folder was listed.

        Each read begins one byte early, at the end of the previous line: S3 refuses a range that begins at the end of
        a file.
        """
        at, yielded, size, aligned = max(0, start - 1), start, PIECE, start == 0
        while True:
            end = at + size if stop is None else min(at + size, stop)
            piece = self._read(file, at, end)
            if not aligned and not piece.startswith(b"\n"):  # `start` is within a line that was unfinished then
                at, aligned = self._line_end_before(file, at), True
                continue
            aligned, line_end = True, at
            for raw in piece.split(b"\n")[:-1]:  # the rest is still being written
                line_end += len(raw) + 1
                if line_end > yielded:
                    yielded = line_end
                    yield line_end, raw
            if end == stop or len(piece) < size:
                return
            at, size = (line_end - 1, PIECE) if line_end - 1 > at else (at, 2 * size)

    def _line_end_before(self, file: str, offset: int) -> int:
        """Offset of the last line end before ``offset``; 0 where there is none."""
        while offset > 0:
            begin = max(0, offset - PIECE)
            found = self._read(file, begin, offset).rfind(b"\n")
            if found >= 0:
                return begin + found
            offset = begin
        return 0

    def lines_backwards(self, attempt: int, source: str) -> Iterator[tuple[Position, bytes]]:
        """Every whole line from the last to the first, with the position where it begins."""
        for number, size in reversed(self.chunks(attempt)[source]):
            start, rest, whole = size, b"", False
            while start > 0:
                first = max(0, start - PIECE)
                rest = self._read(_file(attempt, source, number), first, start) + rest
                start = first
                if not whole:
                    rest = rest[: rest.rfind(b"\n") + 1]
                    whole = bool(rest)
                end = start + len(rest)
                lines = rest.split(b"\n")[:-1]
                rest = b""
                if lines and start > 0:  # the first line may have begun earlier
                    rest = lines.pop(0) + b"\n"
                for raw in reversed(lines):
                    end -= len(raw) + 1
                    yield (number, end), raw

    def save(self, positions: Positions) -> str:
        """Store positions and return the name for marks to refer to: a hash, so that writers never conflict."""
        data = json.dumps({key: positions[key] for key in sorted(positions)}, separators=(",", ":")).encode()
        name = base64.urlsafe_b64encode(hashlib.blake2s(data, digest_size=12).digest()).decode()
        self.artifacts.write(self.folder, _saved_file(name), gzip.compress(data, mtime=0))
        return name

    def saved(self, name: str) -> Positions:
        """The positions that `save` stored under a name; raises `UnknownPositions`."""
        return _saved(self.artifacts, self.folder, name)

    def _read(self, file: str, start: int, stop: int) -> bytes:
        return self.artifacts.read(self.folder, file, start, stop) or b""


@lru_cache(REMEMBERED)
def _saved(artifacts: Artifacts, folder: str, name: str) -> Positions:
    data = artifacts.read(folder, _saved_file(name))
    if data is None:
        raise UnknownPositions(name)
    return {key: (number, size) for key, (number, size) in json.loads(gzip.decompress(data)).items()}


@dataclass(frozen=True)
class WholeLog:
    """The whole log of one source of an attempt, as one file of JSON lines."""

    artifacts: Artifacts
    folder: str
    attempt: int
    source: str
    chunks: Sequence[Chunk]

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Its bytes from ``start`` up to ``stop``, in pieces of bounded size."""
        offset = 0
        for number, size in self.chunks:
            name = _file(self.attempt, self.source, number)
            begin, end = max(0, start - offset), min(size, stop - offset)
            for first in range(begin, end, PIECE):
                data = self.artifacts.read(self.folder, name, first, min(first + PIECE, end))
                if data is None:
                    raise StorageUnreachable(f"{self.folder}/{name}: the file was deleted during the download")
                yield data
            offset += size


def whole(artifacts: Artifacts, folder: str, attempt: int, source: str) -> WholeLog | None:
    """One source's log as it is now; None where the source has logged nothing."""
    chunks = LogFiles(artifacts, folder).chunks(attempt).get(source)
    # As for `StoredFile`: a download that has begun waits for its turn.
    return WholeLog(artifacts.gated(nullcontext), folder, attempt, source, chunks) if chunks else None


def _file(attempt: int, source: str, number: int) -> str:
    return f"{log_folder(attempt)}/{source}.{number:04d}.jsonl"


def _saved_file(name: str) -> str:
    return f"{LOG_POSITIONS}/{name}.json.gz"

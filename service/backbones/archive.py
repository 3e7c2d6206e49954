"""Several stored files as one tar, made while it is sent.

A tar and not a zip: what comes before a file's bytes says nothing of them, so that the length and any range of it are
known without reading a byte. A zip's heads and its directory hold each file's CRC-32.
"""

from __future__ import annotations

import bisect
import tarfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import accumulate

from service.adapters.storage import StoredFile

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


class Archive:
    """Bytes of a tar; the same files, names and time give the same ones always."""

    def __init__(self, members: Iterable[tuple[str, StoredFile]], modified: datetime) -> None:
        """``members`` are names with their files, in this order; ``modified`` is the time that each gets."""
        self._parts: list[bytes | StoredFile] = []
        for name, file in members:
            self._parts += [_head(name, file.size, modified), file, bytes(-file.size % BLOCK)]
        self._parts.append(END)
        self._ends = list(accumulate(len(part) if isinstance(part, bytes) else part.size for part in self._parts))

    @property
    def size(self) -> int:
        return self._ends[-1]

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Its bytes from ``start`` up to ``stop``, a bounded piece at a time."""
        index = bisect.bisect_right(self._ends, start)
        while start < stop:
            part, begin = self._parts[index], self._ends[index - 1] if index else 0
            first, last = start - begin, min(stop, self._ends[index]) - begin
            if isinstance(part, bytes):
                yield part[first:last]
            else:
                yield from part.pieces(first, last)
            start, index = begin + last, index + 1


def _head(name: str, size: int, modified: datetime) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(modified.timestamp()), 0o644
    return info.tobuf(tarfile.PAX_FORMAT)

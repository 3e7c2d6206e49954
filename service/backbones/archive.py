"""Several stored files as one tar, generated while it is sent.

It is a tar because its headers do not depend on the files' content, so its length and the offset of every byte are
known without reading any file. A zip's headers and directory hold each file's CRC-32.
"""

from __future__ import annotations

import bisect
import tarfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import accumulate

from service.http.ranges import ByteSource

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


class Archive:
    """A tar whose bytes can be read in any order. The same files, names and time always give the same bytes."""

    def __init__(self, members: Iterable[tuple[str, ByteSource]], modified: datetime) -> None:
        """``members`` are the names and files, in order; ``modified`` is the modification time of all of them."""
        self._parts: list[bytes | ByteSource] = []
        for name, file in members:
            self._parts += [_header(name, file.size, modified), file, bytes(-file.size % BLOCK)]
        self._parts.append(END)
        self._ends = list(accumulate(len(part) if isinstance(part, bytes) else part.size for part in self._parts))

    @property
    def size(self) -> int:
        """Bytes."""
        return self._ends[-1]

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Its bytes from ``start`` up to ``stop``, in pieces of bounded size. Raises `StorageUnreachable`."""
        index = bisect.bisect_right(self._ends, start)
        while start < stop:
            part, begin = self._parts[index], self._ends[index - 1] if index else 0
            first, last = start - begin, min(stop, self._ends[index]) - begin
            if isinstance(part, bytes):
                yield part[first:last]
            else:
                yield from part.pieces(first, last)
            start, index = begin + last, index + 1


def _header(name: str, size: int, modified: datetime) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(modified.timestamp()), 0o644
    return info.tobuf(tarfile.PAX_FORMAT)

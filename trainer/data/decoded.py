"""A dataset's images kept decoded, in one file mapped into the memory of all workers of a node."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from trainer.data import jpeg
from trainer.data.cache import Cache, format_bytes, partial_file
from trainer.data.decode import Raw, decode
from trainer.data.index import Index
from trainer.data.inspections import CHUNK
from trainer.data.readers import Reader
from trainer.data.scale import Scale
from trainer.data.unreadable import Unreadable
from trainer.errors import DataError
from trainer.logger import logger
from trainer.storage import storage_errors
from trainer.temporary import atomic_write

RAM_SHARE: Final = 0.25
"""The share of the free memory that `auto` fills with decoded images."""
REQUIRED_RAM_SHARE: Final = 0.8
"""The same for `ram`."""


class DecodedReader:
    """Reads images from one file mapped into memory, which all workers of the node share.

    An image that would be decoded at a smaller scale for a small crop stays encoded: its full pixels are not what
    training would see without the cache.
    """

    def __init__(
        self, file: Path, shapes: NDArray[np.int64], whole: NDArray[np.bool_], offsets: NDArray[np.int64]
    ) -> None:
        """``shapes`` (n, 3) of the pixels, ``whole`` (n,) where they are decoded, ``offsets`` (n+1,) in the file."""
        self._file, self._shapes, self._whole, self._offsets = file, shapes, whole, offsets
        self._data = np.memmap(file, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self._file, "shapes": self._shapes, "whole": self._whole, "offsets": self._offsets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        images: list[Raw] = []
        for row in rows:
            data = self._data[self._offsets[row] : self._offsets[row + 1]]
            images.append(data.reshape(self._shapes[row]) if self._whole[row] else data.data)
        return images


def keep_decoded(
    index: Index,
    reader: Reader,
    channels: int,
    scale: Scale,
    size: tuple[int, int],
    cache: Cache,
    threads: int,
    *,
    required: bool,
) -> Reader | str:
    """A reader of decoded images in memory, made once per node; or the reason they do not fit.

    ``size`` (h, w) is that of the crops. ``required`` allows most of the free memory; without it only a quarter.
    """
    shapes = np.stack([index.heights, index.widths, np.full(len(index), channels)], axis=1).astype(np.int64)
    whole = ~index.jpeg | [jpeg.decodes_whole((h, w), size) for h, w, _ in shapes.tolist()]
    offsets = np.concatenate([[0], np.cumsum(np.where(whole, shapes.prod(axis=1), index.lengths))]).astype(np.int64)
    total, free = int(offsets[-1]), psutil.virtual_memory().available
    allowed = int(free * (REQUIRED_RAM_SHARE if required else RAM_SHARE))
    if total > allowed:
        return (
            f"the decoded images take {format_bytes(total)}, and at most {format_bytes(allowed)} of the "
            f"{format_bytes(free)} free memory may be used"
        )
    key = hashlib.sha256(
        f"{index.fingerprint} {channels} {sorted(scale.ranges.items())} {size} 2".encode()
    ).hexdigest()[:32]
    file = cache.folder / "decoded" / key
    with cache.lock(file):
        if not file.is_file():
            reason = cache.make_room(total)
            if reason:
                return reason
            logger.info("Decoding %d images into memory (%s)", len(index), format_bytes(total))
            _write_decoded(file, index, reader, channels, scale, whole, offsets, threads)
    return DecodedReader(file, shapes, whole, offsets)


_CHANGED: Final = "has changed since the index was made: restore it, or retry from scratch"


def _write_decoded(
    file: Path,
    index: Index,
    reader: Reader,
    channels: int,
    scale: Scale,
    whole: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    threads: int,
) -> None:
    size = max(1, int(offsets[-1]))
    with storage_errors(str(file)), atomic_write(file, fsync=False, partial=partial_file(file)) as partial:
        with partial.open("wb") as reserved:
            os.posix_fallocate(reserved.fileno(), 0, size)  # a full disk under a mapping would kill the process
        data = np.memmap(partial, dtype=np.uint8, mode="r+", shape=(size,))

        def write(first: int) -> None:
            rows = range(first, min(first + CHUNK, len(whole)))
            for row, raw in zip(rows, reader.fetch(rows), strict=True):
                try:
                    pixels = (
                        decode(raw, channels, scale).reshape(-1) if whole[row] else np.frombuffer(raw, dtype=np.uint8)
                    )
                except Unreadable as error:
                    raise DataError(f"{index.table.names[row]} {_CHANGED} ({error})") from error
                if len(pixels) != offsets[row + 1] - offsets[row]:
                    raise DataError(f"{index.table.names[row]} {_CHANGED}")
                data[offsets[row] : offsets[row + 1]] = pixels

        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            list(pool.map(write, range(0, len(whole), CHUNK)))
        data.flush()

"""What decoding each image of a dataset has shown. Kept on the node, so that no image is decoded for it twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import Facts, Raw, examine
from trainer.data.readers import Reader
from trainer.data.sources import UNREADABLE_SUFFIXES, Files, suffix_of
from trainer.data.table import Table
from trainer.data.unreadable import Unreadable
from trainer.logger import logger
from trainer.temporary import atomic_write

CHUNK: Final = 32
"""Images that a thread handles at a time."""
LOG_EVERY_SECONDS: Final = 15.0
"""How often long work logs its progress."""
SAVE_EVERY_SECONDS: Final = 60.0
"""How often unfinished inspections are kept: a job that is killed meanwhile does not begin again."""
UNKNOWN, READABLE, UNREADABLE = 0, 1, 2
DIGEST_BYTES: Final = 32
BROKEN_LINK: Final = "a broken link"

Progress = Callable[[int, int], None]
"""Called with the images inspected so far, and those to inspect."""


@dataclass
class Inspections:
    """One row for each image of a table; arrays grow known as images are inspected."""

    identities: NDArray[np.uint64]
    """Which image of which version of which file it is, see `identities_of`."""
    state: NDArray[np.uint8]
    """Unknown, readable or unreadable."""
    heights: NDArray[np.int32]
    """Pixels, of the upright image."""
    widths: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """Bytes of each encoded image; 0 for one that is stored as pixels."""
    bands: NDArray[np.uint8]
    pages: NDArray[np.uint8]
    colour: NDArray[np.bool_]
    formats: NDArray[np.str_]
    types: NDArray[np.str_]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    stack_lows: NDArray[np.float64]
    """Of all pages of a TIFF together."""
    stack_highs: NDArray[np.float64]
    digests: NDArray[np.uint8]
    """(n, 32): sha256 of each image's bytes."""
    reasons: dict[int, str]
    """Why a row's image is unreadable."""

    @classmethod
    def unknown(cls, identities: NDArray[np.uint64]) -> Self:
        """For images that were never inspected."""
        count = len(identities)
        return cls(
            identities=identities,
            state=np.zeros(count, np.uint8), heights=np.zeros(count, np.int32), widths=np.zeros(count, np.int32),
            lengths=np.zeros(count, np.int64), bands=np.zeros(count, np.uint8), pages=np.ones(count, np.uint8),
            colour=np.zeros(count, np.bool_), formats=np.zeros(count, "U8"), types=np.zeros(count, "U8"),
            lows=np.full(count, np.nan), highs=np.full(count, np.nan), stack_lows=np.full(count, np.nan),
            stack_highs=np.full(count, np.nan), digests=np.zeros((count, DIGEST_BYTES), np.uint8), reasons={},
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.state)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Only some rows, in a copy."""
        arrays: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if name != "reasons"}
        unreadable = np.flatnonzero(arrays["state"] == UNREADABLE).tolist()
        return type(self)(**arrays, reasons={row: self.reasons[int(rows[row])] for row in unreadable})

    def put(self, rows: NDArray[np.int64], some: Self) -> None:
        """Take over what is known of some rows; ``some`` has them in the same order."""
        for name, value in vars(self).items():
            if name != "reasons":
                value[rows] = getattr(some, name)
        self.reasons |= {int(rows[row]): reason for row, reason in some.reasons.items()}

    def learn(self, rows: NDArray[np.int64], other: Self) -> None:
        """Take over what others have found out about the images in some rows."""
        order = np.argsort(other.identities)
        places = np.searchsorted(other.identities, self.identities[rows], sorter=order)
        found = order[np.minimum(places, len(order) - 1)]
        same = (other.identities[found] == self.identities[rows]) & (other.state[found] != UNKNOWN)
        self.put(rows[same], other.take(found[same]))

    def record(self, row: int, result: _Inspection | str) -> None:
        """Note what an image holds, or why it cannot be read."""
        if isinstance(result, str):
            self.state[row], self.reasons[row] = UNREADABLE, result
            return
        facts = result.facts
        self.state[row] = READABLE
        self.heights[row], self.widths[row], self.lengths[row] = facts.height, facts.width, result.length
        self.bands[row], self.pages[row], self.colour[row] = facts.bands, facts.pages, facts.colour
        self.formats[row], self.types[row] = facts.format, facts.type
        self.lows[row], self.highs[row] = facts.low, facts.high
        self.stack_lows[row], self.stack_highs[row] = facts.stack_low, facts.stack_high
        self.digests[row] = np.frombuffer(result.digest, np.uint8)

    def facts(self, row: int) -> Facts:
        """What a readable image holds."""
        return Facts(
            str(self.formats[row]), int(self.heights[row]), int(self.widths[row]), int(self.bands[row]),
            int(self.pages[row]), bool(self.colour[row]), str(self.types[row]), float(self.lows[row]),
            float(self.highs[row]), float(self.stack_lows[row]), float(self.stack_highs[row]),
        )  # fmt: skip

    def save(self, file: Path) -> None:
        """Write them to a file atomically: two jobs of a node may write the same one at once."""
        arrays: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "reasons"}
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, fsync=False) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays, reasons=np.frombuffer(json.dumps(self.reasons).encode(), np.uint8))

    @staticmethod
    def known_in(file: Path) -> NDArray[np.uint64]:
        """The identities of the images that `save` wrote something about, without all else."""
        with np.load(file, allow_pickle=False) as arrays:
            identities: NDArray[np.uint64] = arrays["identities"][arrays["state"] != UNKNOWN]
            return identities

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            reasons = {int(row): str(reason) for row, reason in json.loads(arrays["reasons"].tobytes()).items()}
            return cls(**{name: arrays[name] for name in arrays.files if name != "reasons"}, reasons=reasons)


def identities_of(files: Files, table: Table) -> NDArray[np.uint64]:
    """Which image of which version of which file each row of a table is: (n,) numbers of 64 bits.

    The same image has the same in every dataset that its file belongs to.
    """
    mixed = np.array(files.identities, dtype=np.uint64)[table.file]
    for place in (table.first, table.second):  # rounds of SplitMix64's finaliser
        mixed = (mixed ^ place.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


class _Inspection(NamedTuple):
    facts: Facts
    length: int
    digest: bytes


def inspect_images(
    table: Table,
    rows: NDArray[np.int64],
    reader: Reader,
    uri: str,
    threads: int,
    inspections: Inspections,
    keep: Callable[[], None],
    dangling: Collection[int] = frozenset(),
    progress: Progress | None = None,
) -> int:
    """Decode, in threads, those of the rows that were not inspected yet; returns how many were.

    ``dangling`` are the numbers of files that are broken links; ``keep`` saves the inspections from time to time.
    Raises what ``reader`` raises: an image that could not be fetched is neither readable nor unreadable.
    """
    new = rows[inspections.state[rows] == UNKNOWN]
    chunks = [new[first : first + CHUNK] for first in range(0, len(new), CHUNK)]
    done, logged, kept = 0, time.monotonic(), time.monotonic()
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for chunk, results in zip(
                chunks, pool.map(lambda chunk: _inspect_rows(reader, table, chunk, dangling), chunks), strict=True
            ):
                for row, result in zip(chunk, results, strict=True):
                    inspections.record(int(row), result)
                done += len(chunk)
                if progress:
                    progress(done, len(new))
                now = time.monotonic()
                if now - logged > LOG_EVERY_SECONDS:
                    logged = now
                    logger.info("Index of %s: inspected %d of %d images", uri, done, len(new))
                if now - kept > SAVE_EVERY_SECONDS:
                    keep()
                    kept = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            if done:
                keep()
    return done


def _inspect_rows(
    reader: Reader, table: Table, rows: NDArray[np.int64], dangling: Collection[int]
) -> list[_Inspection | str]:
    refused = {int(row): reason for row in rows if (reason := _reason_unread(table, int(row), dangling))}
    present = [int(row) for row in rows if int(row) not in refused]
    results = dict(zip(present, map(_inspect, reader.fetch(present)), strict=True))
    return [refused[int(row)] if int(row) in refused else results[int(row)] for row in rows]


def _reason_unread(table: Table, row: int, dangling: Collection[int]) -> str:
    """Why an image is not even read; an empty string for one that is."""
    if int(table.file[row]) in dangling:
        return BROKEN_LINK
    suffix = suffix_of(table.names[row])
    if suffix in UNREADABLE_SUFFIXES:
        return f"{suffix} files cannot be read: convert them to JPEG or PNG, or leave them out with dataset.exclude"
    return ""


def _inspect(raw: Raw) -> _Inspection | str:
    try:
        facts = examine(raw)
    except Unreadable as error:
        return str(error)
    data, length = (raw.data, 0) if isinstance(raw, np.ndarray) else (raw, len(raw))
    return _Inspection(facts, length, hashlib.sha256(data).digest())

"""The index of a dataset: which images can be read, their sizes and a fingerprint; built once and kept on the node."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import Raw, Unreadable, decode, is_jpeg
from trainer.data.readers import Reader
from trainer.data.sampler import SPLIT, hash64
from trainer.data.scan import Table
from trainer.errors import DataError
from trainer.logger import logger
from trainer.spec.plan import HELD_OUT_MAX, HELD_OUT_SHARE
from trainer.temporary import atomic_write

VERSION: Final = 3
"""Indexes up to version 2 may list an image as bad only because its file was unreachable for a moment."""
SPLIT_SEED: Final = 0
"""The held-out images do not depend on the spec's seed: runs with other seeds are measured on the same ones."""
CHUNK: Final = 32
"""Images that a thread handles at a time."""
BAD_NAMES_LOGGED: Final = 20
LOG_EVERY_SECONDS: Final = 15.0
"""How often long work logs its progress."""
CHANNELS: Final = 3
"""Any number will do: whether an image can be read does not depend on it."""


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Index:
    """The readable images of a dataset, whatever its format."""

    table: Table
    """Where they are; all other arrays have the same rows."""
    heights: NDArray[np.int32]
    """Pixels, of the upright image."""
    widths: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """Bytes of each encoded image; 0 for one that is stored as pixels."""
    jpeg: NDArray[np.bool_]
    """Which ones are JPEG files."""
    bad: tuple[BadImage, ...]
    fingerprint: str
    """Identity of the data: sha256 over the readable images' bytes in their order. The same images in a folder, in tars
    or in Parquet, on a disk or in S3, have the same fingerprint.
    """

    def __len__(self) -> int:
        return len(self.table)

    def save(self, file: Path) -> None:
        """Write the index to a file atomically: two jobs of a node may write the same one at once."""
        table = self.table
        text = {
            "names": list(table.names),
            "classes": table.classes,
            "bad": [[image.name, image.reason] for image in self.bad],
            "fingerprint": self.fingerprint,
        }
        arrays: dict[str, Any] = {
            "files": table.file, "first": table.first, "second": table.second, "heights": self.heights,
            "widths": self.widths, "lengths": self.lengths, "jpeg": self.jpeg,
            "text": np.frombuffer(json.dumps(text).encode(), dtype=np.uint8),
        }  # fmt: skip
        if table.labels is not None:
            arrays["labels"] = table.labels
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, fsync=False) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, file: Path) -> Index:
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            text: dict[str, Any] = json.loads(arrays["text"].tobytes())
            table = Table(
                names=text["names"],
                file=arrays["files"],
                first=arrays["first"],
                second=arrays["second"],
                labels=arrays.get("labels"),
                classes=tuple(text["classes"]),
            )
            return cls(
                table=table,
                heights=arrays["heights"],
                widths=arrays["widths"],
                lengths=arrays["lengths"],
                jpeg=arrays["jpeg"],
                bad=tuple(BadImage(name, reason) for name, reason in text["bad"]),
                fingerprint=text["fingerprint"],
            )


class _Inspection(NamedTuple):
    """What decoding one image has shown."""

    height: int
    width: int
    length: int
    jpeg: bool
    digest: bytes
    reason: str
    """Why it cannot be read; empty if it can."""


_DANGLING: Final = _Inspection(0, 0, 0, False, b"", "a broken link")


def build_index(table: Table, reader: Reader, uri: str, threads: int, dangling: Collection[int] = frozenset()) -> Index:
    """Decode every image once, in threads, to learn which ones can be read and how large they are.

    ``dangling`` are the numbers of files that are broken links. Raises what ``reader`` raises: an image that could not
    be fetched is neither good nor bad.
    """
    chunks = [np.arange(first, min(first + CHUNK, len(table))) for first in range(0, len(table), CHUNK)]
    inspections: list[_Inspection] = []
    last_logged = time.monotonic()
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for inspected in pool.map(lambda rows: _inspect_rows(reader, table, rows, dangling), chunks):
                inspections += inspected
                if time.monotonic() - last_logged > LOG_EVERY_SECONDS:
                    last_logged = time.monotonic()
                    logger.info("Index of %s: inspected %d of %d images", uri, len(inspections), len(table))
        finally:
            pool.shutdown(cancel_futures=True)
    good = np.array([row for row, each in enumerate(inspections) if not each.reason], dtype=np.int64)
    bad = tuple(BadImage(table.names[row], each.reason) for row, each in enumerate(inspections) if each.reason)
    digest = hashlib.sha256()
    for row in good:
        digest.update(inspections[row].digest)
    logger.info("Index of %s: %d images can be read, %d cannot", uri, len(good), len(bad))
    return Index(
        table=_select(table, good),
        heights=np.array([inspections[row].height for row in good], dtype=np.int32),
        widths=np.array([inspections[row].width for row in good], dtype=np.int32),
        lengths=np.array([inspections[row].length for row in good], dtype=np.int64),
        jpeg=np.array([inspections[row].jpeg for row in good], dtype=np.bool_),
        bad=bad,
        fingerprint=digest.hexdigest(),
    )


def _select(table: Table, rows: NDArray[np.int64]) -> Table:
    """The table with only some of its rows."""
    return replace(
        table,
        names=[table.names[row] for row in rows],
        file=table.file[rows],
        first=table.first[rows],
        second=table.second[rows],
        labels=None if table.labels is None else table.labels[rows],
    )


def _inspect_rows(
    reader: Reader, table: Table, rows: NDArray[np.int64], dangling: Collection[int]
) -> list[_Inspection]:
    present = [int(row) for row in rows if int(table.file[row]) not in dangling]
    inspections = dict(zip(present, map(_inspect, reader.fetch(present)), strict=True))
    return [inspections.get(int(row), _DANGLING) for row in rows]


def _inspect(raw: Raw) -> _Inspection:
    try:
        height, width, _ = decode(raw, raw.shape[2] if isinstance(raw, np.ndarray) else CHANNELS).shape
    except Unreadable as error:
        return _Inspection(0, 0, 0, False, b"", str(error))
    data, length = (raw.data, 0) if isinstance(raw, np.ndarray) else (raw, len(raw))
    return _Inspection(height, width, length, is_jpeg(raw), hashlib.sha256(data).digest(), "")


def check_readable(index: Index, uri: str, max_bad_fraction: float, field: str) -> None:
    """Name the unreadable images in the log. Raises `DataError` if they are too many, or all.

    ``field`` is where the spec names the dataset.
    """
    total = len(index) + len(index.bad)
    for image in index.bad[:BAD_NAMES_LOGGED]:
        logger.warning("Left out because it cannot be read: %s (%s)", image.name, image.reason)
    if index.bad:
        logger.warning("%d of %d images of %s cannot be read and are left out", len(index.bad), total, uri)
    first = f"the first is {index.bad[0].name} ({index.bad[0].reason})" if index.bad else ""
    if not len(index):
        raise DataError(f"{field}.uri: none of the {total} images of {uri} can be read; {first}")
    if len(index.bad) > max_bad_fraction * total:
        raise DataError(
            f"{field}.max_bad_fraction: {len(index.bad)} of {total} images of {uri} cannot be read "
            f"({len(index.bad) / total:.1%}, {max_bad_fraction:.1%} are allowed); {first}. "
            "Repair or remove the images that the log names, or allow more"
        )


def split(images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the index to train on, ascending, and held-out rows, in a fixed random order; together ``images``."""
    held_out = min(images // HELD_OUT_SHARE, HELD_OUT_MAX)
    shuffled = np.argsort(hash64(SPLIT_SEED, 0, np.arange(images), SPLIT), kind="stable")
    return np.sort(shuffled[held_out:]), shuffled[:held_out]

"""Which images of a dataset can be read, how large they are, and what they are: found out once and kept on the node."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import JPEG_START, Raw, Unreadable, decode
from trainer.data.readers import Reader
from trainer.data.sampler import SPLIT, hash64
from trainer.data.scan import Table
from trainer.errors import DataError
from trainer.logger import logger
from trainer.spec.plan import HELD_OUT_MAX, HELD_OUT_SHARE

VERSION: Final = 3
"""Up to 2, an index could call an image bad because it could not be read for a moment."""
SPLIT_SEED: Final = 0
"""The held-out images do not follow the spec's seed: runs of other seeds are measured on the same ones."""
CHUNK: Final = 32
BAD_NAMES_LOGGED: Final = 20
SAY_EVERY_S: Final = 15.0
CHANNELS: Final = 3
"""Whether an image can be read does not depend on the channels a job wants."""


@dataclass(frozen=True)
class BadImage:
    """A file that cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Index:
    """The readable images of a dataset; the same form for every format."""

    table: Table
    """Where they are; a row is an image's position everywhere else."""
    heights: NDArray[np.int32]
    """Pixels, upright."""
    widths: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """Bytes of each encoded file; 0 for pixels."""
    jpeg: NDArray[np.bool_]
    """Which are JPEG files."""
    bad: tuple[BadImage, ...]
    fingerprint: str
    """Identity of the data: sha256 over the readable images' own bytes in their order. The same images in a folder, in
    tars and in Parquet, wherever they lie, are the same data.
    """

    def __len__(self) -> int:
        return len(self.table)

    def save(self, file: Path) -> None:
        """Write it whole or not at all."""
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
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", suffix=".npz", delete=False) as fresh:
            np.savez(fresh, **arrays)
        os.replace(fresh.name, file)  # noqa: PTH105 - two jobs of a node may write the same index at once

    @classmethod
    def load(cls, file: Path) -> Index:
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


class _Look(NamedTuple):
    """What one image turned out to be."""

    height: int
    width: int
    length: int
    jpeg: bool
    digest: bytes
    reason: str
    """Why it cannot be read; empty where it can."""


_DANGLING: Final = _Look(0, 0, 0, False, b"", "a link to nowhere")


def build_index(table: Table, reader: Reader, uri: str, threads: int, dangling: Collection[int] = frozenset()) -> Index:
    """Decode every image once, in threads, to learn which are sound and how large they are.

    ``dangling`` are the numbers of files that are links to nowhere. Raises what ``reader`` raises: an image that could
    not be fetched is neither good nor bad.
    """
    chunks = [np.arange(first, min(first + CHUNK, len(table))) for first in range(0, len(table), CHUNK)]
    looks: list[_Look] = []
    said = time.monotonic()
    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        try:
            for part in pool.map(lambda rows: _look(reader, table, rows, dangling), chunks):
                looks += part
                if time.monotonic() - said > SAY_EVERY_S:
                    said = time.monotonic()
                    logger.info("Index of %s: %d of %d images looked at", uri, len(looks), len(table))
        finally:
            pool.shutdown(cancel_futures=True)
    good = np.array([row for row, look in enumerate(looks) if not look.reason], dtype=np.int64)
    bad = tuple(BadImage(table.names[row], look.reason) for row, look in enumerate(looks) if look.reason)
    digest = hashlib.sha256()
    for row in good:
        digest.update(looks[row].digest)
    logger.info("Index of %s: %d images can be read, %d cannot", uri, len(good), len(bad))
    return Index(
        table=chosen(table, good),
        heights=np.array([looks[row].height for row in good], dtype=np.int32),
        widths=np.array([looks[row].width for row in good], dtype=np.int32),
        lengths=np.array([looks[row].length for row in good], dtype=np.int64),
        jpeg=np.array([looks[row].jpeg for row in good], dtype=np.bool_),
        bad=bad,
        fingerprint=digest.hexdigest(),
    )


def chosen(table: Table, rows: NDArray[np.int64]) -> Table:
    """The table of some of its rows."""
    return replace(
        table,
        names=[table.names[row] for row in rows],
        file=table.file[rows],
        first=table.first[rows],
        second=table.second[rows],
        labels=None if table.labels is None else table.labels[rows],
    )


def _look(reader: Reader, table: Table, rows: NDArray[np.int64], dangling: Collection[int]) -> list[_Look]:
    present = [int(row) for row in rows if int(table.file[row]) not in dangling]
    looks = dict(zip(present, map(_look_at, reader.fetch(present)), strict=True))
    return [looks.get(int(row), _DANGLING) for row in rows]


def _look_at(raw: Raw) -> _Look:
    try:
        height, width, _ = decode(raw, raw.shape[2] if isinstance(raw, np.ndarray) else CHANNELS).shape
    except Unreadable as error:
        return _Look(0, 0, 0, False, b"", str(error))
    encoded = not isinstance(raw, np.ndarray)
    jpeg = encoded and bytes(raw[: len(JPEG_START)]) == JPEG_START
    return _Look(
        height,
        width,
        len(raw) if encoded else 0,
        jpeg,
        hashlib.sha256(raw.data if isinstance(raw, np.ndarray) else raw).digest(),
        "",
    )


def check_readable(index: Index, uri: str, max_bad_fraction: float, field: str) -> None:
    """Name the unreadable images in the log; raises `DataError` where too many are, or all."""
    total = len(index) + len(index.bad)
    for image in index.bad[:BAD_NAMES_LOGGED]:
        logger.warning("Left out, cannot be read: %s (%s)", image.name, image.reason)
    if index.bad:
        logger.warning("%d of %d images of %s cannot be read and are left out", len(index.bad), total, uri)
    first = f"the first is {index.bad[0].name} ({index.bad[0].reason})" if index.bad else ""
    if not len(index):
        raise DataError(f"{field}.uri: none of the {total} images of {uri} can be read; {first}")
    if len(index.bad) > max_bad_fraction * total:
        raise DataError(
            f"{field}.max_bad_fraction: {len(index.bad)} of {total} images of {uri} cannot be read "
            f"({len(index.bad) / total:.1%}, allowed are {max_bad_fraction:.1%}); {first}. "
            "Mend or remove them, they are named in the log, or allow more"
        )


def split(images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the index to train on, ascending, and the held-out ones, in a fixed random order."""
    held = min(images // HELD_OUT_SHARE, HELD_OUT_MAX)
    shuffled = np.argsort(hash64(SPLIT_SEED, 0, np.arange(images), SPLIT), kind="stable")
    return np.sort(shuffled[held:]), shuffled[:held]

"""Examining a dataset: its images found, chosen, and each decoded once; what was found out is kept on the node."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache import Cache
from trainer.data.inspections import UNKNOWN, Inspections, Progress, identities_of, inspect_images
from trainer.data.labels import Labels
from trainer.data.readers import DigitsReader, Reader, open_reader
from trainer.data.scan import scan
from trainer.data.selection import select, share_of_rows
from trainer.data.sources import Files
from trainer.data.splits import Split
from trainer.data.table import Table
from trainer.logger import logger
from trainer.spec.dataset import DIGITS, DatasetSpec
from trainer.storage import storage_errors

T = TypeVar("T")

VERSION: Final = 5
"""Of the files in which a node keeps what it knows of a dataset."""
OTHERS_READ: Final = 32
"""The most kept inspections of other lists of files that are looked through, the newest first."""
FROM_LIBRARY: Final = "builtin"


@dataclass(frozen=True)
class Examined:
    """The images of a dataset that a spec uses."""

    table: Table
    rows: NDArray[np.int64]
    """Those rows of the table whose images were inspected: all, or a sample."""
    inspections: Inspections
    """One row for each of the table's."""
    reader: Reader
    """Of the table's rows."""
    splits: dict[str, Split]
    passed_over: dict[str, int]
    """Suffixes of files, and of members of shards, that are no images, with their number."""
    decoded: int
    """Images that had to be decoded for it: the others were known to this node."""
    seconds: float
    """How long that took."""

    @property
    def all(self) -> bool:
        """Whether all images were inspected, not only a sample."""
        return len(self.rows) == len(self.table)


def examine_files(
    files: Files,
    dataset: DatasetSpec,
    cache: Cache,
    threads: int,
    sample: int | None = None,
    progress: Progress | None = None,
) -> Examined:
    """Inspect the images that a spec uses, or ``sample`` of them, as far as this node does not know them yet."""
    folder = cache.folder / "indexes"
    listing = f"v{VERSION}-{files.listing[:32]}"
    kept_table = folder / f"{listing}-{_key(dataset.image_column, dataset.label_column)}-table.npz"
    kept_inspections = folder / f"{listing}-{_key(dataset.image_column)}-images.npz"
    table = _load(kept_table, Table.load)
    if table is None:
        table = scan(files, dataset)
        with storage_errors(str(kept_table)):
            table.save(kept_table)
    rows, chosen, splits = select(files, table, dataset)
    sampled = share_of_rows(chosen, np.arange(len(chosen)), sample or len(chosen))
    known = _load(kept_inspections, Inspections.load) or Inspections.unknown(identities_of(files, table))

    def save() -> None:
        with storage_errors(str(kept_inspections)):
            known.save(kept_inspections)

    if _learn_from_others(known, rows[sampled], kept_inspections):
        save()
    inspections = known.take(rows)

    def keep() -> None:
        known.put(rows, inspections)
        save()

    reader, begun = open_reader(files, chosen, dataset.image_column), time.monotonic()
    decoded = inspect_images(chosen, sampled, reader, files.uri, threads, inspections, keep, files.dangling, progress)
    return Examined(
        table=chosen,
        rows=sampled,
        inspections=inspections,
        reader=reader,
        splits=splits,
        passed_over=dict(Counter(files.passed_over) + Counter(table.passed_over)),
        decoded=decoded,
        seconds=time.monotonic() - begun,
    )


def _learn_from_others(known: Inspections, rows: NDArray[np.int64], kept: Path) -> bool:
    """Take over what is kept for other lists of files about the images in these rows; returns whether there was any.

    ``kept`` is the file in which ``known`` is kept.
    """
    same_column = kept.name.rpartition("-images")[0].rpartition("-")[2]
    others = [file for file in kept.parent.glob(f"v{VERSION}-*-{same_column}-images.npz") if file != kept]
    others.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    learned = False
    for file in others[:OTHERS_READ]:
        missing = rows[known.state[rows] == UNKNOWN]
        if not len(missing):
            break
        theirs = _load(file, Inspections.known_in)
        if theirs is not None and np.isin(known.identities[missing], theirs).any():
            other = _load(file, Inspections.load)
            if other:
                known.learn(missing, other)
                learned = True
    return learned


def _load(kept: Path, read: Callable[[Path], T]) -> T | None:
    """What a file keeps, as ``read`` reads it; None if there is no such file, or if it is damaged."""
    with storage_errors(str(kept)):
        if not kept.is_file():
            return None
        try:
            return read(kept)
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            logger.warning("%s is damaged, so what it kept is found out again: %s", kept, error)
            return None


def examine_digits(
    dataset: DatasetSpec, channels: int, threads: int, sample: int | None = None, progress: Progress | None = None
) -> Examined:
    """The same for the built-in digits, which are created with this many channels."""
    digits = DigitsReader(channels)
    count = len(digits.labels)
    rows = np.arange(count)
    names = [f"digit-{row:04d}" for row in rows]
    labels = Labels(digits.labels, digits.classes, FROM_LIBRARY)
    table = Table(names, np.zeros(count, dtype=np.int32), rows, rows, labels)
    chosen = share_of_rows(table, rows, max(1, round(dataset.fraction * count)))
    table, reader = table.select(chosen), digits.select(chosen)
    sampled = share_of_rows(table, np.arange(len(table)), sample or len(table))
    inspections, begun = Inspections.unknown(np.arange(len(table), dtype=np.uint64)), time.monotonic()
    decoded = inspect_images(table, sampled, reader, DIGITS, threads, inspections, keep=lambda: None, progress=progress)
    return Examined(table, sampled, inspections, reader, {}, {}, decoded, time.monotonic() - begun)


def _key(*columns: str | None) -> str:
    """A short name for the columns that a spec chooses."""
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:8]

"""Which of a dataset's images a spec uses: by patterns of their names, and by a hash of them."""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.data.labels import FROM_NOWHERE, Labels, incomplete_notice, labels_of_paths
from trainer.data.patterns import path_matcher
from trainer.data.sources import Files
from trainer.data.splits import Split, find_splits, splits_notice
from trainer.data.table import Table
from trainer.errors import DataError
from trainer.spec.dataset import DatasetSpec


def select_rows(files: Files, table: Table, dataset: DatasetSpec) -> NDArray[np.int64]:
    """Rows of the table that the spec uses, ascending. Raises `DataError` if there are none."""
    rows = np.arange(len(table), dtype=np.int64)
    if dataset.include or dataset.exclude:
        wanted = path_matcher(dataset.include, "dataset.include") if dataset.include else lambda _: True
        unwanted = path_matcher(dataset.exclude, "dataset.exclude") if dataset.exclude else lambda _: False
        chosen = [
            any(wanted(path) for path in paths) and not any(unwanted(path) for path in paths)
            for paths in _paths(files, table)
        ]
        rows = rows[np.array(chosen, dtype=np.bool_)]
        if not len(rows):
            shown = f"include {list(dataset.include)}, exclude {list(dataset.exclude)}"
            raise DataError(f"dataset.include: none of the {len(table)} images of {files.uri} is left by {shown}")
    return share_of_rows(table, rows, max(1, round(dataset.fraction * len(rows))))


def wanted_files(files: Files, dataset: DatasetSpec) -> frozenset[int] | None:
    """Numbers of the files that a spec needs; None for all. Of shards and Parquet files these are all."""
    if files.kind != "folder" or not (dataset.include or dataset.exclude or dataset.fraction < 1):
        return None
    numbers = np.setdiff1d(np.arange(len(files.names)), np.array(files.metadata, dtype=np.int64)).astype(np.int32)
    names, none = [files.names[number] for number in numbers], np.zeros(len(numbers), dtype=np.int64)
    table = Table(names, numbers, none, none, Labels.none(len(numbers)))
    return frozenset(numbers[select_rows(files, table, dataset)].tolist()) | frozenset(files.metadata)


def share_of_rows(table: Table, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of the rows, or all if they are fewer, chosen by a hash of the images' names; ascending."""
    if count >= len(rows):
        return rows
    hashes = np.array([_hash(table.names[row]) for row in rows], dtype=np.uint64)
    return np.sort(rows[np.argsort(hashes, kind="stable")[:count]])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())


def selected(files: Files, table: Table, rows: NDArray[np.int64]) -> tuple[Table, dict[str, Split]]:
    """The table with only these rows, with labels from the images' folders if they have no others; and its splits."""
    chosen = table.select(rows)
    notices = list(chosen.notices)
    if chosen.labels.source == FROM_NOWHERE and files.kind != "parquet":
        labels, more = labels_of_paths([posixpath.normpath(paths[0]) for paths in _paths(files, chosen)])
        chosen = replace(chosen, labels=labels)
        notices += more
    notices += incomplete_notice(chosen.labels, chosen.names)
    paths = chosen.names if files.kind == "folder" else [files.names[number] for number in chosen.file]
    splits = find_splits(files.root, paths, in_file_names=files.kind != "folder")
    return replace(chosen, notices=(*notices, *splits_notice(files.root, splits))), splits


def _paths(files: Files, table: Table) -> list[tuple[str, ...]]:
    """The paths of each image that patterns are compared with: its own, and in a shard also with the shard's name."""
    if files.kind == "folder":
        return [(name,) for name in table.names]
    holders = [files.names[number] for number in table.file]
    if files.kind == "parquet":
        return [(holder,) for holder in holders]
    members = (name.removeprefix(f"{holder}/") for name, holder in zip(table.names, holders, strict=True))
    return [(member, f"{holder}/{member}") for member, holder in zip(members, holders, strict=True)]

"""Which of a dataset's images a spec uses: by patterns of their names, and by a hash of them."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.labels import FROM_NOWHERE, Labels, incomplete_notice, labels_of_folders
from trainer.data.layout import Layout, layout_of
from trainer.data.patterns import path_matcher
from trainer.data.sources import Files
from trainer.data.splits import Place, Split, place_of_file, splits_notice, splits_of_places
from trainer.data.table import Table
from trainer.errors import DataError
from trainer.spec.dataset import DatasetSpec


class Selection(NamedTuple):
    """The images of a dataset that a spec uses."""

    rows: NDArray[np.int64]
    """Their rows in the table of all images, ascending."""
    table: Table
    """Those rows, with labels from the images' folders if there are no others."""
    splits: dict[str, Split]


def select(files: Files, table: Table, dataset: DatasetSpec) -> Selection:
    """The images that the spec uses. Raises `DataError` if there are none.

    What the folders mean does not depend on `dataset.fraction`: a share of the images has the classes that all have.
    """
    rows = _included(files, table, dataset)
    some = table.select(rows)
    folders = _folders(files, some)
    layout = layout_of(set(folders))
    notices = list(some.notices)
    if some.labels.source == FROM_NOWHERE and files.kind != "parquet":
        labels, more = labels_of_folders(folders, layout)
        some = replace(some, labels=labels)
        notices += more
    kept = _share(some, np.arange(len(some)), dataset)
    chosen = some.select(kept)
    notices += incomplete_notice(chosen.labels, chosen.names)
    places = _places(files, chosen, [folders[row] for row in kept], layout)
    splits = splits_of_places(files.uri, files.root, places)
    notices += splits_notice(files.uri, splits, places, len(chosen))
    return Selection(rows[kept], replace(chosen, notices=tuple(notices)), splits)


def _included(files: Files, table: Table, dataset: DatasetSpec) -> NDArray[np.int64]:
    """Rows of the images that `include` and `exclude` leave. Raises `DataError` if there are none."""
    rows = np.arange(len(table), dtype=np.int64)
    if not (dataset.include or dataset.exclude):
        return rows
    wanted = path_matcher(dataset.include, "dataset.include") if dataset.include else lambda _: True
    unwanted = path_matcher(dataset.exclude, "dataset.exclude") if dataset.exclude else lambda _: False

    def fits(paths: Sequence[str]) -> bool:
        return any(map(wanted, paths)) and not any(map(unwanted, paths))

    if files.kind == "parquet":
        chosen = np.array([fits((name,)) for name in files.names], dtype=np.bool_)[table.file]
    else:
        chosen = np.array([fits(paths) for paths in _paths(files, table)], dtype=np.bool_)
    rows = rows[chosen]
    if not len(rows):
        shown = f"include {list(dataset.include)}, exclude {list(dataset.exclude)}"
        raise DataError(f"dataset.include: none of the {len(table)} images of {files.uri} is left by {shown}")
    return rows


def _share(table: Table, rows: NDArray[np.int64], dataset: DatasetSpec) -> NDArray[np.int64]:
    return share_of_rows(table, rows, max(1, round(dataset.fraction * len(rows))))


def wanted_files(files: Files, dataset: DatasetSpec) -> frozenset[int] | None:
    """Numbers of the files that a spec needs; None for all. Of shards and Parquet files these are all."""
    if files.kind != "folder" or not (dataset.include or dataset.exclude or dataset.fraction < 1):
        return None
    numbers = np.setdiff1d(np.arange(len(files.names)), np.array(files.metadata, dtype=np.int64)).astype(np.int32)
    names, none = [files.names[number] for number in numbers], np.zeros(len(numbers), dtype=np.int64)
    table = Table(names, numbers, none, none, Labels.none(len(numbers)))
    rows = _share(table, _included(files, table, dataset), dataset)
    return frozenset(numbers[rows].tolist()) | frozenset(files.metadata)


def share_of_rows(table: Table, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of the rows, or all if they are fewer, chosen by a hash of the images' names; ascending."""
    if count >= len(rows):
        return rows
    hashes = np.array([_hash(table.names[row]) for row in rows], dtype=np.uint64)
    return np.sort(rows[np.argsort(hashes, kind="stable")[:count]])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())


def _paths(files: Files, table: Table) -> list[tuple[str, ...]]:
    """The paths of each image that patterns are compared with: its own, and in a shard also with the shard's name."""
    if files.kind == "folder":
        return [(name,) for name in table.names]
    holders = [files.names[number] for number in table.file]
    if files.kind == "parquet":
        return [(holder,) for holder in holders]
    prefixes = [len(holder) + 1 if len(files.names) > 1 else 0 for holder in holders]  # as `scan_tars` has them
    members = [name[prefix:] for name, prefix in zip(table.names, prefixes, strict=True)]
    return [(member, f"{holder}/{member}") for member, holder in zip(members, holders, strict=True)]


def _folders(files: Files, table: Table) -> list[str]:
    """The folder that each image is in, below the dataset or within its shard."""
    folders = [paths[0].rpartition("/")[0] for paths in _paths(files, table)]
    return [posixpath.normpath(folder) if "//" in folder else folder for folder in folders]  # keys of S3 may have it


def _places(files: Files, table: Table, folders: Sequence[str], layout: Layout) -> Counter[Place]:
    """Where images of splits are, and how many. In a shard that is in no split, the folders within it count."""
    if files.kind == "folder":
        return Counter(place for folder in folders if (place := layout.splits.get(folder)))
    holders = {number: files.names[number] for number in set(table.file.tolist())}
    outer = layout_of({posixpath.dirname(holder) for holder in holders.values()})
    places = {
        number: outer.splits.get(posixpath.dirname(holder)) or place_of_file(holder)
        for number, holder in holders.items()
    }
    found = (
        places[number] or _within(layout, folder) for number, folder in zip(table.file.tolist(), folders, strict=True)
    )
    return Counter(place for place in found if place)


def _within(layout: Layout, folder: str) -> Place | None:
    place = layout.splits.get(folder)
    return place and place._replace(folder=None)

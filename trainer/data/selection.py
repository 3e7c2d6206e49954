"""Which of a dataset's images a spec uses: by patterns of their names, and by a hash of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from wcmatch import glob

from trainer.data.sources import Files
from trainer.data.table import Table
from trainer.errors import DataError
from trainer.spec.dataset import DatasetSpec

FLAGS: Final = glob.GLOBSTAR | glob.BRACE | glob.MATCHBASE | glob.DOTGLOB | glob.CASE
FOLDERS_REMEMBERED: Final = 65_536


def select_rows(files: Files, table: Table, dataset: DatasetSpec) -> NDArray[np.int64]:
    """Rows of the table that the spec uses, ascending. Raises `DataError` if there are none."""
    rows = np.arange(len(table), dtype=np.int64)
    if dataset.include or dataset.exclude:
        wanted = _matcher(dataset.include) if dataset.include else lambda _: True
        unwanted = _matcher(dataset.exclude) if dataset.exclude else lambda _: False
        chosen = [_is_any(wanted, paths) and not _is_any(unwanted, paths) for paths in _paths(files, table)]
        rows = rows[np.array(chosen, dtype=np.bool_)]
        if not len(rows):
            shown = f"include {list(dataset.include)}, exclude {list(dataset.exclude)}"
            raise DataError(f"dataset.include: none of the {len(table)} images of {files.uri} is left by {shown}")
    return share_of_rows(table, rows, dataset.fraction)


def share_of_rows(table: Table, rows: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """``fraction`` of the rows, at least one, chosen by a hash of the images' names; ascending."""
    if fraction == 1:
        return rows
    hashes = np.array([_hash(table.names[row]) for row in rows], dtype=np.uint64)
    return np.sort(rows[np.argsort(hashes, kind="stable")[: max(1, round(fraction * len(rows)))]])


def _paths(files: Files, table: Table) -> list[tuple[str, ...]]:
    """The paths of each image that patterns are compared with: its own, and in a shard also with the shard's name."""
    if files.kind == "folder":
        return [(name,) for name in table.names]
    holders = [files.names[number] for number in table.file]
    if files.kind == "parquet":
        return [(holder,) for holder in holders]
    members = (name.removeprefix(f"{holder}/") for name, holder in zip(table.names, holders, strict=True))
    return [(member, f"{holder}/{member}") for member, holder in zip(members, holders, strict=True)]


def _is_any(matches: Callable[[str], bool], paths: Sequence[str]) -> bool:
    return any(matches(path) for path in paths)


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path or one of the folders in it matches one of the patterns."""
    try:
        compiled = glob.compile([pattern.rstrip("/") for pattern in patterns], flags=FLAGS)
    except glob.PatternLimitException as error:
        raise DataError(f"dataset.include, dataset.exclude: too many alternatives in braces: {error}") from error

    @lru_cache(FOLDERS_REMEMBERED)
    def folder_matches(folder: str) -> bool:
        return bool(folder) and (compiled.match(folder) or folder_matches(folder.rpartition("/")[0]))

    return lambda path: compiled.match(path) or folder_matches(path.rpartition("/")[0])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())

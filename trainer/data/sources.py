"""Which files a dataset consists of, on a disk or in S3."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from trainer.data.reading import DatasetFile, read_patiently
from trainer.errors import DataError
from trainer.logger import logger
from trainer.spec.dataset import DIGITS, DatasetSpec, misplaced
from trainer.storage import open_filesystem, told

Kind = Literal["folder", "tar", "parquet"]

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
SUFFIXES: Final[dict[Kind, frozenset[str]]] = {
    "folder": IMAGE_SUFFIXES,
    "tar": frozenset({".tar"}),
    "parquet": frozenset({".parquet"}),
}
COMPRESSED_TARS: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_IMPOSSIBLE: Final = frozenset({errno.ELOOP, errno.ENAMETOOLONG})
"""Errors of paths that no disk or mount could resolve."""


@dataclass(frozen=True)
class Files:
    """A dataset's files, by name."""

    uri: str
    """The dataset's, as people know it."""
    kind: Kind
    remote: bool
    names: tuple[str, ...]
    """Below the dataset's folder, sorted."""
    paths: tuple[str, ...]
    """Where each lies, in the file system's own terms."""
    sizes: tuple[int, ...]
    """Bytes."""
    dangling: frozenset[int]
    """Numbers of those that were links to nowhere when they were listed."""
    listing: str
    """Identity of the list as it is now: changes when a file is added, taken away or written again."""

    def place(self, number: int) -> str:
        """Where a file lies, for people."""
        return f"s3://{self.paths[number]}" if self.remote else self.paths[number]

    def open_file(self, number: int, **s3_options: Any) -> DatasetFile:
        """A file, to be read from any place in it; ``s3_options`` are for s3fs's `open`."""
        path = self.paths[number]

        def opener() -> IO[bytes]:
            if not self.remote:
                return open(path, "rb", buffering=0)  # noqa: PTH123 - names may be no Unicode, a path is all that is needed
            fs, _ = open_filesystem(self.uri)
            file: IO[bytes] = fs.open(path, "rb", **s3_options)
            return file

        return DatasetFile(self.place(number), opener)


@dataclass(frozen=True)
class _Found:
    name: str
    path: str
    size: int
    stamp: str
    """Changes when the file is written again; empty for a link to nowhere."""


def find_files(dataset: DatasetSpec, roots: Sequence[str] | None = None) -> Files:
    """List the files behind a dataset's URI, which must lie below one of the roots, wherever links lead.

    Raises `DataError` where there are none or one lies elsewhere, `StorageError` out of reach.
    """
    uri = dataset.uri
    if uri == DIGITS:
        raise ValueError(f"{DIGITS} has no files")
    wrong = misplaced(dataset, "dataset", roots)
    if wrong:
        raise DataError(str(wrong))
    parent, _, last = uri.rpartition("/")
    pattern = last if "*" in last else None
    place, remote = parent if pattern else uri, uri.startswith("s3://")
    found = _list_remote(place, (pattern or "").partition("*")[0]) if remote else _list_local(place, roots)
    if pattern:
        # The pattern is of names directly below the folder: a folder that fits gives all that is below it.
        found = [file for file in found if fnmatch.fnmatchcase(file.name.partition("/")[0], pattern)]
    kind = _kind(dataset, found)
    mine = sorted((file for file in found if suffix_of(file.name) in SUFFIXES[kind]), key=lambda file: file.name)
    passed = len(found) - len(mine)
    if passed:
        logger.info("%s: %d other files beside its %d %s files are passed over", uri, passed, len(mine), kind)
    dangling = frozenset(number for number, file in enumerate(mine) if not file.stamp)
    if dangling and kind != "folder":
        raise DataError(
            f"dataset.uri: {mine[min(dangling)].name} of {uri} is a link to nowhere: "
            "put the file where it leads, or remove the link"
        )
    listed = "\n".join(f"{file.name}\t{file.size}\t{file.stamp}" for file in mine)
    return Files(
        uri=uri,
        kind=kind,
        remote=remote,
        names=tuple(file.name for file in mine),
        paths=tuple(file.path for file in mine),
        sizes=tuple(file.size for file in mine),
        dangling=dangling,
        listing=hashlib.sha256(f"{kind}\n{listed}".encode(errors="surrogateescape")).hexdigest(),
    )


def _kind(dataset: DatasetSpec, found: Sequence[_Found]) -> Kind:
    """The format asked for, or the only one whose files there are."""
    there: dict[Kind, int] = {
        kind: sum(suffix_of(file.name) in suffixes for file in found) for kind, suffixes in SUFFIXES.items()
    }
    kinds = [kind for kind, count in there.items() if count]
    if dataset.format == "auto" and len(kinds) == 1:
        return kinds[0]
    if dataset.format != "auto" and there[dataset.format]:
        return dataset.format
    counts = ", ".join(f"{count} of {kind}" for kind, count in there.items() if count)
    if dataset.format == "auto" and counts:
        raise DataError(f"dataset.format: {dataset.uri} holds files of several formats ({counts}): say which to read")
    packed = next((file.name for file in found if file.name.endswith(COMPRESSED_TARS)), None)
    if packed:
        raise DataError(
            f"dataset.uri: {packed} in {dataset.uri} is compressed, so its images cannot be read one by one: "
            "unpack it to .tar (the images in it are compressed already)"
        )
    wanted = SUFFIXES[dataset.format] if dataset.format != "auto" else frozenset().union(*SUFFIXES.values())
    raise DataError(
        f"dataset.uri: {'no files' if counts or dataset.format != 'auto' else 'no images'} in {dataset.uri}: "
        f"it needs files named {', '.join(sorted(wanted))}" + (f"; there are {counts}" if counts else "")
    )


def suffix_of(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _list_local(uri: str, roots: Sequence[str] | None) -> list[_Found]:
    root = Path(uri.removeprefix("file://"))
    real = None if roots is None else [os.path.realpath(r.removeprefix("file://")) for r in roots if _is_local(r)]
    _check_real(root, real)
    mode = read_patiently(str(root), lambda: _mode(root))
    if stat.S_ISREG(mode):
        return [read_patiently(str(root), lambda: _stamped(root, root.name))]
    if not stat.S_ISDIR(mode):
        raise DataError(f"dataset.uri: there is no folder or file {root} on this node: check the path and its mount")
    return _below(root, "", real)


def _mode(path: Path) -> int:
    """What kind of file it is; 0 where there is none."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, *_IMPOSSIBLE}:
            return 0
        raise


def _is_local(root: str) -> bool:
    return root.startswith(("/", "file://"))


def _check_real(path: Path, real_roots: Sequence[str] | None) -> None:
    """Raises `DataError` for what lies elsewhere once links are followed."""
    if real_roots is None:
        return
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in real_roots):
        raise DataError(
            f"dataset.uri: {path} leads to {real}, outside of the places for datasets ({', '.join(real_roots)}): "
            "put the files themselves there"
        )


def _below(folder: Path, prefix: str, real_roots: Sequence[str] | None) -> list[_Found]:
    """Every file below a folder; hidden files and folders are passed over."""
    found, folders = read_patiently(str(folder), lambda: _entries(folder, prefix, real_roots))
    for name in folders:
        found += _below(folder / name, f"{prefix}{name}/", real_roots)
    return found


def _entries(folder: Path, prefix: str, real_roots: Sequence[str] | None) -> tuple[list[_Found], list[str]]:
    """The files directly in a folder, and the names of its folders."""
    found: list[_Found] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():  # all else lies where its folder does
                    _check_real(Path(entry.path), real_roots)
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    found.append(_stamped(Path(entry.path), f"{prefix}{entry.name}"))
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            raise DataError(f"dataset.uri: {folder} cannot be listed: {error}") from error
        raise
    return found, folders


def _stamped(path: Path, name: str) -> _Found:
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.is_symlink():  # it has just been removed, or its mount is away: list the folder again
            raise
        return _Found(name, str(path), 0, "")
    return _Found(name, str(path), status.st_size, str(status.st_mtime_ns))


def _list_remote(uri: str, prefix: str) -> list[_Found]:
    """Every object below a place whose name there begins with ``prefix``."""
    with told(uri):
        fs, root = open_filesystem(uri)
        try:
            listed = fs.find(root, detail=True, prefix=prefix)
        except FileNotFoundError:
            listed = {}
    if not listed and not prefix:
        raise DataError(f"dataset.uri: there is nothing at {uri}: check the bucket and the path")
    found = []
    for path, detail in listed.items():
        name = posixpath.basename(path) if path == root else str(path)[len(root) + 1 :]
        if not _hidden(name) and not name.endswith("/"):
            stamp = str(detail.get("ETag") or detail.get("LastModified"))
            found.append(_Found(name, str(path), int(detail["size"]), stamp))
    return found

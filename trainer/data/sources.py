"""The files that a dataset consists of, on a disk or in S3."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from trainer.data.patterns import name_matcher
from trainer.data.reading import DatasetFile, read_patiently, shown_name
from trainer.errors import DataError
from trainer.logger import logger
from trainer.spec.dataset import DIGITS, WILDCARDS, DatasetSpec, misplaced
from trainer.storage import open_filesystem, storage_errors

Kind = Literal["folder", "tar", "parquet"]

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pnm", ".npy"}
)
UNREADABLE_SUFFIXES: Final = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".dcm", ".dicom", ".nii", ".exr", ".psd", ".svg"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
)
"""Kinds of images that cannot be read. They count as unreadable images, so that nobody trains on a part unawares."""
METADATA_NAMES: Final = ("metadata.csv", "metadata.jsonl")
"""Files with the labels of the images in their folder: the convention of Hugging Face's `imagefolder`."""
SUFFIXES: Final[dict[Kind, frozenset[str]]] = {
    "folder": IMAGE_SUFFIXES,
    "tar": frozenset({".tar"}),
    "parquet": frozenset({".parquet"}),
}
SUFFIXES_SHOWN: Final = 5
COMPRESSED_TARS: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_INVALID_PATH_ERRORS: Final = frozenset({errno.ELOOP, errno.ENAMETOOLONG})
"""Errors for paths that no disk or mount could resolve."""


@dataclass(frozen=True)
class Files:
    """A dataset's files, sorted by name. A file's number is its index."""

    uri: str
    """The dataset's URI, as the spec names it."""
    root: str
    """The URI of the folder that the names are relative to."""
    kind: Kind
    remote: bool
    names: tuple[str, ...]
    """Relative to the dataset's folder, as they are shown: valid Unicode."""
    paths: tuple[str, ...]
    """Path of each file within its file system."""
    sizes: tuple[int, ...]
    """Bytes."""
    metadata: tuple[int, ...]
    """Numbers of the files that hold labels instead of images."""
    passed_over: dict[str, int]
    """Suffixes of the files in the dataset's folder that do not belong to it, and how many there are of each."""
    dangling: frozenset[int]
    """Numbers of the files that were broken links when they were listed."""
    identities: tuple[int, ...]
    """Each file's path, size and time or ETag as one number of 64 bits, which copies of it on a node's disk keep."""
    listing: str
    """Identity of the list: it changes when a file is added, removed, overwritten or moved."""

    def location(self, number: int) -> str:
        """A file's path or S3 URI, for messages."""
        return f"s3://{self.paths[number]}" if self.remote else shown_name(self.paths[number])

    def open_file(self, number: int, **s3_options: Any) -> DatasetFile:
        """A file for random access; ``s3_options`` are passed to s3fs's `open`."""
        path = self.paths[number]

        def opener() -> IO[bytes]:
            if not self.remote:
                return open(path, "rb", buffering=0)  # noqa: PTH123 - names may be invalid Unicode; the path is all that is needed
            fs, _ = open_filesystem(self.uri)
            file: IO[bytes] = fs.open(path, "rb", **s3_options)
            return file

        return DatasetFile(self.location(number), opener)


@dataclass(frozen=True)
class _ListedFile:
    name: str
    """As it is shown."""
    path: str
    size: int
    stamp: str
    """Changes when the file is overwritten; empty for a broken link."""


def find_files(dataset: DatasetSpec, roots: Sequence[str] | None = None) -> Files:
    """List the files behind a dataset's URI. If there are roots, all files must lie below them, links followed.

    Raises `DataError` if there are no files or one lies outside the roots, `StorageError` if they cannot be listed.
    """
    uri = dataset.uri
    if uri == DIGITS:
        raise ValueError(f"{DIGITS} has no files")
    problem = misplaced(dataset, "dataset", roots)
    if problem:
        raise DataError(str(problem))
    remote = uri.startswith("s3://")
    root, pattern = _root_and_pattern(uri)
    listed = _list_remote(root, _prefixes(pattern)) if remote else _list_local(root, roots)
    beside: list[_ListedFile] = []
    if pattern:
        # The pattern applies to names directly below the folder: a folder that matches includes everything below it.
        matches = name_matcher(pattern, "dataset.uri")
        beside = [file for file in listed if file.name in METADATA_NAMES and not matches(file.name)]
        listed = [file for file in listed if matches(file.name.partition("/")[0])]
    elif [file.path for file in listed] == [_path_in(root)]:
        root = root.rpartition("/")[0]
    kind = _kind(dataset, listed)
    if kind == "folder":
        listed += beside  # the labels of images that match are in a file that does not
    chosen = sorted((file for file in listed if _belongs(file.name, kind)), key=lambda file: file.name)
    passed_over = Counter(suffix_of(file.name) or "no suffix" for file in listed if not _belongs(file.name, kind))
    if passed_over:
        shown = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common(SUFFIXES_SHOWN))
        logger.info("%s: passing over %d files that are no %s files: %s", uri, passed_over.total(), kind, shown)
    dangling = frozenset(number for number, file in enumerate(chosen) if not file.stamp)
    if dangling and kind != "folder":
        raise DataError(
            f"dataset.uri: {chosen[min(dangling)].name} of {uri} is a broken link: "
            "restore the file that it points to, or remove the link"
        )
    identities = tuple(_identity(file) for file in chosen)
    return Files(
        uri=uri,
        root=root,
        kind=kind,
        remote=remote,
        names=tuple(file.name for file in chosen),
        paths=tuple(file.path for file in chosen),
        sizes=tuple(file.size for file in chosen),
        metadata=tuple(number for number, file in enumerate(chosen) if _is_metadata(file.name, kind)),
        passed_over=dict(passed_over),
        dangling=dangling,
        identities=identities,
        listing=hashlib.sha256(f"{kind} {identities} {root}".encode(errors="surrogateescape")).hexdigest(),
    )


def _identity(file: _ListedFile) -> int:
    text = f"{file.path}\t{file.size}\t{file.stamp}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest())


def _root_and_pattern(uri: str) -> tuple[str, str]:
    """The folder to list, and the pattern of the names in it; empty for the file or folder of exactly this name."""
    parent, _, last = uri.rpartition("/")
    if not any(character in last for character in WILDCARDS) or _exists(uri):
        return uri, ""
    return parent, last


def _prefixes(pattern: str) -> tuple[str, ...]:
    """What the names of a pattern's files, and of metadata beside them, begin with; an empty text for any name."""
    prefix = re.split(f"[{re.escape(WILDCARDS)}]", pattern, maxsplit=1)[0]
    beside = posixpath.commonprefix(METADATA_NAMES)
    return (prefix, beside) if prefix and not beside.startswith(prefix) else (prefix,)


def _path_in(uri: str) -> str:
    """A URI's path within its file system."""
    return uri.removeprefix("s3://") if uri.startswith("s3://") else str(Path(uri.removeprefix("file://")))


def _exists(uri: str) -> bool:
    if not uri.startswith("s3://"):
        path = Path(uri.removeprefix("file://"))
        return read_patiently(str(path), lambda: _mode(path)) != 0
    with storage_errors(uri):
        fs, path_in_store = open_filesystem(uri)
        return bool(fs.exists(path_in_store))


def _belongs(name: str, kind: Kind) -> bool:
    """Whether a file belongs to a dataset of this kind: its images, shards or rows, or their labels."""
    suffix = suffix_of(name)
    return suffix in SUFFIXES[kind] or (kind == "folder" and suffix in UNREADABLE_SUFFIXES) or _is_metadata(name, kind)


def _is_metadata(name: str, kind: Kind) -> bool:
    return kind == "folder" and posixpath.basename(name) in METADATA_NAMES


def _kind(dataset: DatasetSpec, listed: Sequence[_ListedFile]) -> Kind:
    """The format that the spec names, or with `auto` the only one that has files. Raises `DataError`."""
    counts: dict[Kind, int] = {
        kind: sum(suffix_of(file.name) in suffixes for file in listed) for kind, suffixes in SUFFIXES.items()
    }
    kinds = [kind for kind, count in counts.items() if count]
    if dataset.format == "auto" and len(kinds) == 1:
        return kinds[0]
    if dataset.format in {"auto", "folder"} and not kinds and any(_belongs(file.name, "folder") for file in listed):
        return "folder"  # images of kinds that cannot be read: the index counts and names them
    if dataset.format != "auto" and counts[dataset.format]:
        return dataset.format
    summary = ", ".join(f"{count} of {kind}" for kind, count in counts.items() if count)
    if dataset.format == "auto" and summary:
        raise DataError(f"dataset.format: {dataset.uri} has files of several formats ({summary}): name one of them")
    compressed = next((file.name for file in listed if file.name.endswith(COMPRESSED_TARS)), None)
    if compressed:
        raise DataError(
            f"dataset.uri: {compressed} in {dataset.uri} is compressed, so its images cannot be read one by one: "
            "unpack it to .tar (the images in it are compressed already)"
        )
    wanted = SUFFIXES[dataset.format] if dataset.format != "auto" else frozenset().union(*SUFFIXES.values())
    raise DataError(
        f"dataset.uri: {'no files' if summary or dataset.format != 'auto' else 'no images'} in {dataset.uri}: "
        f"it needs files named {', '.join(sorted(wanted))}" + (f"; there are {summary}" if summary else "")
    )


def suffix_of(name: str) -> str:
    """A file name's suffix in lower case, for example `.jpg`."""
    return posixpath.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a file or one of the folders in its name is hidden; `.` and `..` are not."""
    return any(part.startswith(".") and part not in {".", ".."} for part in name.split("/"))


def _list_local(uri: str, roots: Sequence[str] | None) -> list[_ListedFile]:
    path = Path(uri.removeprefix("file://"))
    real = real_roots(roots)
    check_below_roots(path, real)
    mode = read_patiently(str(path), lambda: _mode(path))
    if stat.S_ISREG(mode):
        return [read_patiently(str(path), lambda: _list_file(path, path.name))]
    if not stat.S_ISDIR(mode):
        raise DataError(f"dataset.uri: there is no folder or file {path} on this node: check the path and its mount")
    return _list_tree(path, "", real)


def _mode(path: Path) -> int:
    """The mode bits of a file or folder; 0 if it does not exist."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, *_INVALID_PATH_ERRORS}:
            return 0
        raise


def _is_local(root: str) -> bool:
    return root.startswith(("/", "file://"))


def real_roots(roots: Sequence[str] | None) -> list[str] | None:
    """The folders among the roots, links followed; None if any location is allowed."""
    return None if roots is None else [os.path.realpath(r.removeprefix("file://")) for r in roots if _is_local(r)]


def check_below_roots(path: Path, real: Sequence[str] | None, field: str = "dataset.uri") -> None:
    """Raise `DataError` if a path lies outside ``real``, which `real_roots` gives, once links are followed."""
    if real is None:
        return
    end = Path(os.path.realpath(path))
    if not any(end.is_relative_to(root) for root in real):
        raise DataError(
            f"{field}: {shown_name(str(path))} leads to {shown_name(str(end))}, outside the locations that jobs "
            f"may read ({', '.join(real)}): move or copy the files into one of them"
        )


def _list_tree(folder: Path, prefix: str, real: Sequence[str] | None) -> list[_ListedFile]:
    """Every file below a folder, except hidden files and those in hidden folders."""
    files, folders = read_patiently(str(folder), lambda: _list_folder(folder, prefix, real))
    for name in folders:
        files += _list_tree(folder / name, f"{prefix}{name}/", real)
    return files


def _list_folder(folder: Path, prefix: str, real: Sequence[str] | None) -> tuple[list[_ListedFile], list[str]]:
    """The files directly in a folder, and the names of its sub-folders."""
    files: list[_ListedFile] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():  # everything else lies where its folder does
                    check_below_roots(Path(entry.path), real)
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    files.append(_list_file(Path(entry.path), f"{prefix}{entry.name}"))
    except OSError as error:
        if error.errno in _INVALID_PATH_ERRORS:
            raise DataError(f"dataset.uri: {shown_name(str(folder))} cannot be listed: {error}") from error
        raise
    return files, folders


def _list_file(path: Path, name: str) -> _ListedFile:
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.is_symlink():  # it has just been removed, or its mount is gone: the folder has to be listed again
            raise
        return _ListedFile(shown_name(name), str(path), 0, "")
    return _ListedFile(shown_name(name), str(path), status.st_size, str(status.st_mtime_ns))


def _list_remote(uri: str, prefixes: Sequence[str]) -> list[_ListedFile]:
    """Every object below a URI whose name, relative to it, begins with one of the prefixes."""
    objects: dict[str, Any] = {}
    with storage_errors(uri):
        fs, root = open_filesystem(uri)
        for prefix in prefixes:
            with contextlib.suppress(FileNotFoundError):
                objects |= fs.find(root, detail=True, prefix=prefix)
    if not objects and not any(prefixes):
        raise DataError(f"dataset.uri: there is nothing at {uri}: check the bucket and the path")
    files = []
    for path, detail in objects.items():
        name = posixpath.basename(path) if path == root else str(path)[len(root) + 1 :]
        if not is_hidden(name) and not name.endswith("/"):
            stamp = str(detail.get("ETag") or detail.get("LastModified"))
            files.append(_ListedFile(name, str(path), int(detail["size"]), stamp))
    return files

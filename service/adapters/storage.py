"""Files of runs and backbones, on a disk or in S3. Nothing outside the artifact root is read or written."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import posixpath
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Final

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from service.adapters.breaker import Gated, Unreachable
from service.adapters.storage_errors import explanation, is_answer, s3_code
from service.atomic import write_atomically

PIECE: Final = 4 * 2**20
"""Bytes of a file that are held in memory at a time."""
LONGEST_KEY: Final = 1024
"""Longest key in S3, in bytes."""
LIMITS_S: Final = {
    "call_s3": 10, "cat_file": 20, "info": 10, "ls": 20, "pipe_file": 20, "rm_file": 10, "url": 10,
}  # fmt: skip
"""Seconds for each operation in S3, with its retries: without a limit, reading a file of a server that hangs takes two
minutes. `find`, which lists folders of any size, ends within a minute if the server hangs."""


class OutsideRoot(Exception):
    """A path that is not below the artifact root."""


class StorageUnreachable(Unreachable):
    """The storage did not respond, or refused: it is not known which files exist."""

    dependency: ClassVar[str] = "the artifact storage"


class StorageRefused(StorageUnreachable):
    """The storage responded that this one request is impossible; other requests may succeed."""


@dataclass(frozen=True)
class StoredFile:
    """A file that exists."""

    artifacts: Artifacts
    path: str
    """A local path, or an S3 key with its bucket."""
    size: int
    """Bytes."""
    modified: datetime
    revision: str
    """Changes whenever the file is written again: S3's ETag, or on a disk the inode and the time of the last change."""

    @property
    def etag(self) -> str:
        """Identifies the content, in quotes as HTTP has it, without reading the file."""
        return f'"{hashlib.sha256(f"{self.path} {self.size} {self.revision}".encode()).hexdigest()[:32]}"'

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Its bytes from ``start`` up to ``stop``, at most `PIECE` bytes at a time. Raises `StorageUnreachable`.

        This goes through no gate: a download that has begun waits for its turn, and `service.http.ranges` bounds them.
        """
        for begin in range(start, stop, PIECE):
            yield self.artifacts.piece(self.path, begin, min(begin + PIECE, stop))


class Artifacts(Gated):
    """The artifact root, which holds the artifacts of all runs: a path or an ``s3://bucket/prefix`` URI.

    Every method raises `OutsideRoot` for a folder that is not below the root, and `StorageUnreachable` if the storage
    does not respond. The environment, or a named profile, gives S3's endpoint and credentials.
    """

    def __init__(self, root: str, profile: str | None = None, public_endpoint: str | None = None) -> None:
        """``public_endpoint`` is S3's address for signed links, if clients reach it by another address."""
        self.root = root.rstrip("/")
        self._local = "://" not in root or root.startswith("file://")
        self._fs: AbstractFileSystem = LocalFileSystem() if self._local else _s3(profile)
        self._signer = self._fs if self._local or not public_endpoint else _s3(profile, public_endpoint)
        self._base = str(Path(root.removeprefix("file://")).resolve()) if self._local else root[5:].rstrip("/")

    def file(self, folder: str, name: str) -> StoredFile | None:
        """A file below a run's or a version's folder; None if there is none.

        A name that is absolute, or leads out of the folder through ``..`` or a link, counts as a file that does not
        exist.
        """
        with self._call(f"{folder}/{name}"):
            path = self._resolve(folder, name)
            if path is None:
                return None
            try:
                info = self._fs.info(path)
            except (FileNotFoundError, NotADirectoryError) as error:
                _must_have_bucket(error)
                return None
        return self._stored(path, info) if info["type"] == "file" else None

    def _stored(self, path: str, info: Mapping[str, Any]) -> StoredFile:
        """A file as fsspec describes it."""
        if self._local:
            modified, revision = datetime.fromtimestamp(info["mtime"], UTC), f"{info['ino']} {info['mtime']!r}"
        else:
            modified, revision = info["LastModified"], str(info["ETag"])
        return StoredFile(self, path, int(info["size"]), modified, revision)

    def holds(self, folder: str) -> bool:
        """Whether a folder is below the root by its path. It need not exist. Never raises.

        A path below the root is not searched for links that lead out, which would take long for thousands of folders:
        whoever reads the folder's files does that.
        """
        if self._local and posixpath.normpath(folder.removeprefix("file://")).startswith(f"{self._base}/"):
            return True
        try:
            return self._folder(folder) != self._base
        except OutsideRoot:
            return False

    def link(self, file: StoredFile, seconds: int) -> str | None:
        """A signed URL from which anybody can download a file for some seconds; None if the file is on a disk."""
        if self._local:
            return None
        with self._call(f"s3://{file.path}"):
            url: str = self._signer.sign(file.path, expiration=seconds)
            return url

    def read(self, folder: str, name: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """A small file's bytes, or those from ``start`` up to ``stop``; None if there is no such file."""
        with self._call(f"{folder}/{name}"):
            path = self._resolve(folder, name)
            if path is None or (self._local and not Path(path).is_file()):
                return None
            try:
                data: bytes = self._fs.cat_file(path, start=start or None, end=stop)
            except FileNotFoundError as error:
                _must_have_bucket(error)
                return None
        return data

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a small file atomically: a reader sees all of it or nothing. The folder must exist."""
        with self._call(f"{folder}/{name}"):
            path = self._resolve(folder, name)
            if path is None:
                raise OutsideRoot(f"{folder}/{name} is not below its folder")
            if not self._local:
                self._fs.pipe_file(path, data)
                return
            target = Path(path)
            target.parent.mkdir(exist_ok=True)
            write_atomically(target, data)

    def upload(self, source: Path, name: str) -> None:
        """Store a local file below the root, under a relative name."""
        path = self._resolve(self.root, name)
        if path is None:
            raise OutsideRoot(f"{name} is not below the artifact root")
        with _storage_errors(f"{self.root}/{name}"):
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            self._fs.put_file(str(source), path)

    def sizes(self, folder: str, below: str = "") -> dict[str, int]:
        """Sizes, in bytes, of the files directly in a folder, by name; empty if it does not exist."""
        files = {
            posixpath.basename(entry["name"]): int(entry["size"])
            for entry in self._entries(folder, below)
            if entry["type"] == "file"
        }
        return {name: size for name, size in files.items() if name}  # S3's marker object for a folder has no name

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; empty if it does not exist."""
        return sorted(posixpath.basename(entry["name"]) for entry in self._entries(folder) if entry["type"] != "file")

    def _entries(self, folder: str, below: str = "") -> list[dict[str, Any]]:
        """What is directly in a folder, as fsspec describes it; empty if the folder does not exist."""
        with self._call(f"{folder}/{below}"):
            try:
                return list(self._fs.ls(posixpath.join(self._folder(folder), below), detail=True))
            except FileNotFoundError as error:
                _must_have_bucket(error)
                return []

    def files(self, folder: str) -> list[tuple[str, int]]:
        """The relative path and the size, in bytes, of every file below a folder; links that lead out are skipped."""
        return [(name, file.size) for name, file in self.stored(folder).items()]

    def stored(self, folder: str, below: str = "") -> dict[str, StoredFile]:
        """Every file below a folder, or below one of its folders, by the path relative to ``folder``, sorted.

        Links that lead out are skipped; empty if there is no such folder.
        """
        with self._call(folder):
            base = self._folder(folder)
            entries = self._fs.find(posixpath.join(base, below) if below else base, detail=True)
            found = {path.removeprefix(base).lstrip("/"): (path, entry) for path, entry in entries.items()}
            return {name: self._stored(*found[name]) for name in sorted(found) if self._resolve(folder, name)}

    def delete(self, folder: str) -> None:
        """Remove a folder with everything below it, if it exists. Refuses the root itself with `OutsideRoot`.

        On a disk it also removes the parent folder if that is empty then: MLflow creates one for each run.
        """
        with self._call(folder):
            path = self._folder(folder)
            if path == self._base:
                raise OutsideRoot(f"{folder} is the artifact root itself")
            if self._local:
                self._delete_local(Path(path))
                return
            try:
                # One by one: s3fs ignores S3's errors for single files of a bulk deletion.
                for file in self._fs.find(path):
                    self._fs.rm_file(file)
            except FileNotFoundError as error:
                _must_have_bucket(error)

    def _delete_local(self, folder: Path) -> None:
        if folder.exists():
            self._fs.rm(str(folder), recursive=True)
        if str(folder.parent) == self._base:
            return
        try:
            folder.parent.rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise

    def piece(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop`` of a `StoredFile`'s path."""
        with _storage_errors(path if self._local else f"s3://{path}"):
            data: bytes = self._fs.cat_file(path, start=start, end=stop)
            return data

    def ping(self) -> None:
        """Check that the root can be read."""
        with self._call(self.root):
            self._folder(self.root)
            if not self._local:
                bucket, _, prefix = self._base.partition("/")
                self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def probe(self) -> None:
        """Check that a small file can be written, read and deleted, as jobs do. Creates a local root if needed."""
        name = f"probe-{secrets.token_hex(8)}"
        path, data = posixpath.join(self._base, name), name.encode()
        with self._call(self.root):
            if self._local:
                self._fs.makedirs(self._base, exist_ok=True)
            self._fs.pipe_file(path, data)
            read = self._fs.cat_file(path)
            self._fs.rm_file(path)
        if read != data:
            raise StorageUnreachable(f"{self.root}: a test file read back differs from what was written")

    @contextmanager
    def _call(self, path: str) -> Iterator[None]:
        """Wraps everything that reaches the storage."""
        with self._gate(), _storage_errors(path):
            yield

    def _resolve(self, folder: str, name: str) -> str | None:
        """The path of a file, which need not exist; None for a name that leads out of its folder."""
        base = self._folder(folder)
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part in {"..", "."} or "\x00" in part for part in parts):
            return None
        if not self._local:
            path = posixpath.join(base, *parts)
            # Some servers read a backslash as a slash, and s3fs a question mark as a version; our names have neither.
            return None if set("\\?") & set(name) or len(path.encode(errors="replace")) > LONGEST_KEY else path
        try:
            resolved = Path(base).joinpath(*parts).resolve()
            resolved.exists()
        except RuntimeError:  # a link to itself
            return None
        except OSError as error:
            if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
                return None
            raise
        return str(resolved) if resolved.is_relative_to(base) else None

    def _folder(self, folder: str) -> str:
        """The local path, or the S3 key with its bucket, of a folder."""
        if not self._local:
            path = folder.removeprefix("s3://").rstrip("/")
            climbs = any(part in {"..", ".", ""} for part in path.split("/"))
            if climbs or not folder.startswith("s3://") or not f"{path}/".startswith(f"{self._base}/"):
                raise OutsideRoot(f"{folder} is not below the artifact root")
            return path
        resolved = Path(folder.removeprefix("file://")).resolve()
        if "://" in folder.removeprefix("file://") or not resolved.is_relative_to(self._base):
            raise OutsideRoot(f"{folder} is not below the artifact root")
        if not Path(self._base).is_dir():
            raise StorageUnreachable(f"{self.root}: the artifact root does not exist: check that its disk is mounted")
        return str(resolved)


def _s3(profile: str | None, endpoint: str | None = None) -> S3FileSystem:
    """S3 with limits of seconds, unlike training's minute: people wait for requests, and the reconciler retries."""
    fs = S3FileSystem(
        **({"profile": profile} if profile else {}),
        **({"endpoint_url": endpoint} if endpoint else {}),
        config_kwargs={
            "connect_timeout": 3,
            "read_timeout": 8,
            "retries": {"mode": "standard", "total_max_attempts": 3},
            "signature_version": "s3v4",  # the default signs links with the old version, which many servers refuse
        },
        use_listings_cache=False,
        max_concurrency=1,  # reads a small file in one request instead of two
        skip_instance_cache=True,
    )
    fs.retries = 2  # s3fs's own retries, around botocore's, for interrupted bodies
    for operation, seconds in LIMITS_S.items():
        setattr(fs, operation, _limited(fs, operation, seconds))
    return fs


def _limited(fs: S3FileSystem, operation: str, seconds: int) -> Callable[..., Any]:
    """An operation of a file system that raises `FSTimeoutError` when its time is up."""
    unlimited = getattr(fs, f"_{operation}")

    async def limited(*args: Any, **kwargs: Any) -> Any:
        return await asyncio.wait_for(unlimited(*args, **kwargs), seconds)

    return partial(sync, fs.loop, limited)


@contextmanager
def _storage_errors(path: str) -> Iterator[None]:
    """Turns a storage error into `StorageUnreachable`, whose text gives the path, the error and what to do."""
    try:
        yield
    # botocore raises ValueError for an endpoint that is not a URL.
    except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, ValueError) as error:
        text = f"{path}: {explanation(error)}"
        kind = StorageRefused if is_answer(error) else StorageUnreachable
        raise kind(re.sub(r"://[^/@\s]*@", "://…@", text)) from error  # an endpoint may hold a password


def _must_have_bucket(error: OSError) -> None:
    """Raises the error again if the bucket is missing: only a missing file is a valid result."""
    if s3_code(error) == "NoSuchBucket":
        raise error

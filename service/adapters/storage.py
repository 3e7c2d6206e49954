"""Files of runs and backbones, on a disk or in S3. Nothing outside the artifact root is ever read."""

from __future__ import annotations

import errno
import posixpath
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

PIECE: Final = 4 * 2**20
"""Bytes of a file that are in memory at a time."""
LONGEST_KEY: Final = 1024
"""Bytes of a key in S3."""
CREDENTIALS: Final = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or RCMAE_S3_PROFILE"


class OutsideRoot(Exception):
    """A folder that is not one of ours."""


class StorageUnreachable(Exception):
    """The storage did not answer, or refused: nothing is known of what lies there."""


@dataclass(frozen=True)
class StoredFile:
    """A file that is there."""

    artifacts: Artifacts
    path: str
    """In the storage's own terms."""
    size: int
    """Bytes."""
    modified: datetime

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Its bytes from ``start`` up to ``stop``, a bounded piece at a time."""
        for begin in range(start, stop, PIECE):
            yield self.artifacts.piece(self.path, begin, min(begin + PIECE, stop))


class Artifacts:
    """The folder all runs' artifacts lie in: a path or an ``s3://bucket/prefix`` URI.

    Every method raises `OutsideRoot` for a folder that is not below the root, and `StorageUnreachable` where the
    storage does not answer. S3's endpoint and credentials are the environment's, or those of a named profile.
    """

    def __init__(self, root: str, profile: str | None = None, public_endpoint: str | None = None) -> None:
        """``public_endpoint`` is S3's address for links, where clients reach it by another than this process."""
        self.root = root.rstrip("/")
        self._local = "://" not in root or root.startswith("file://")
        self._fs: AbstractFileSystem = LocalFileSystem() if self._local else _s3(profile)
        self._signer = self._fs if self._local or not public_endpoint else _s3(profile, public_endpoint)
        self._base = str(Path(root.removeprefix("file://")).resolve()) if self._local else root[5:].rstrip("/")

    def file(self, folder: str, name: str) -> StoredFile | None:
        """A file below a run's or a version's folder; None where there is none.

        Names that climb out, absolute ones and links that lead out of the folder are files that do not exist.
        """
        path = self._place(folder, name)
        if path is None:
            return None
        with _asked(f"{folder}/{name}"):
            try:
                found = self._fs.info(path)
            except (FileNotFoundError, NotADirectoryError) as error:
                _must_have_bucket(error)
                return None
        if found["type"] != "file":
            return None
        modified = datetime.fromtimestamp(found["mtime"], UTC) if self._local else found["LastModified"]
        return StoredFile(self, path, int(found["size"]), modified)

    def holds(self, folder: str) -> bool:
        """Whether a folder, which need not exist, lies below the root."""
        try:
            return self._folder(folder) != self._base
        except OutsideRoot:
            return False

    def link(self, file: StoredFile, seconds: int) -> str | None:
        """An absolute URL that gives a file's bytes to whoever has it, for so long; None where it is on a disk."""
        if self._local:
            return None
        with _asked(f"s3://{file.path}"):
            url: str = self._signer.sign(file.path, expiration=seconds)
            return url

    def read(self, folder: str, name: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """A small file's bytes, or those from ``start`` up to ``stop``; None where there is none."""
        path = self._place(folder, name)
        if path is None or (self._local and not Path(path).is_file()):
            return None
        with _asked(f"{folder}/{name}"):
            try:
                data: bytes = self._fs.cat_file(path, start=start or None, end=stop)
            except FileNotFoundError as error:
                _must_have_bucket(error)
                return None
        return data

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Put a small file in place whole, in a folder that exists: a reader sees all of it or nothing."""
        path = self._place(folder, name)
        if path is None:
            raise OutsideRoot(f"{folder}/{name} is not below its folder")
        with _asked(f"{folder}/{name}"):
            if not self._local:
                self._fs.pipe_file(path, data)
                return
            target = Path(path)
            target.parent.mkdir(exist_ok=True)
            partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
            try:
                partial.write_bytes(data)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def sizes(self, folder: str, below: str = "") -> dict[str, int]:
        """Files directly below a folder with their bytes, by name."""
        path = posixpath.join(self._folder(folder), below)
        with _asked(f"{folder}/{below}"):
            try:
                found = self._fs.ls(path, detail=True)
            except FileNotFoundError as error:
                _must_have_bucket(error)
                return {}
        files = {posixpath.basename(f["name"]): int(f["size"]) for f in found if f["type"] == "file"}
        return {name: size for name, size in files.items() if name}  # a folder's own mark has none

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below a folder, sorted; none where it does not exist."""
        path = self._folder(folder)
        with _asked(folder):
            try:
                found = self._fs.ls(path, detail=True)
            except FileNotFoundError as error:
                _must_have_bucket(error)
                return []
        return sorted(posixpath.basename(f["name"]) for f in found if f["type"] != "file")

    def files(self, folder: str) -> list[tuple[str, int]]:
        """Every file below a folder with its bytes, by relative path; links that lead out are passed over."""
        base = self._folder(folder)
        with _asked(folder):
            found = self._fs.find(base, detail=True)
        sizes = {path.removeprefix(base).lstrip("/"): int(found[path]["size"]) for path in found}
        return sorted((name, size) for name, size in sizes.items() if self._place(folder, name))

    def delete(self, folder: str) -> None:
        """Remove a folder with everything below it; nothing happens where there is none. Never the root itself.

        On a disk the folder that it lay in goes too if that is empty now: MLflow makes one around each run's.
        """
        path = self._folder(folder)
        if path == self._base:
            raise OutsideRoot(f"{folder} is the artifact root itself")
        with _asked(folder):
            if self._local:
                self._delete_local(Path(path))
                return
            try:
                # One by one: s3fs ignores what S3 says of single files of a joint deletion.
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
        """Some bytes of a file that `file` found."""
        with _asked(path if self._local else f"s3://{path}"):
            data: bytes = self._fs.cat_file(path, start=start, end=stop)
            return data

    def ping(self) -> None:
        """Look whether the root can be read."""
        self._folder(self.root)
        if not self._local:
            bucket, _, prefix = self._base.partition("/")
            with _asked(self.root):
                self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

    def probe(self) -> None:
        """Write, read and delete a small file: everything that running jobs will do there. Makes a local root."""
        name = f"probe-{secrets.token_hex(8)}"
        path, data = posixpath.join(self._base, name), name.encode()
        with _asked(self.root):
            if self._local:
                self._fs.makedirs(self._base, exist_ok=True)
            self._fs.pipe_file(path, data)
            read = self._fs.cat_file(path)
            self._fs.rm_file(path)
        if read != data:
            raise StorageUnreachable(f"{self.root}: what was written there was not what was read back")

    def _place(self, folder: str, name: str) -> str | None:
        """Where a file would be; None for a name that leads out of its folder."""
        base = self._folder(folder)
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part in {"..", "."} or "\x00" in part for part in parts):
            return None
        if not self._local:
            path = posixpath.join(base, *parts)
            # Some servers take a backslash for a slash, and s3fs a question mark for a version: ours hold neither.
            return None if set("\\?") & set(name) or len(path.encode(errors="replace")) > LONGEST_KEY else path
        try:
            resolved = Path(base).joinpath(*parts).resolve()
            resolved.exists()
        except RuntimeError:  # a link to itself
            return None
        except OSError as error:
            if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
                return None
            raise StorageUnreachable(f"{folder}: {error}") from error
        return str(resolved) if resolved.is_relative_to(base) else None

    def _folder(self, folder: str) -> str:
        """A folder in the storage's own terms."""
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
            raise StorageUnreachable(f"{self.root}: the artifact root is not there: is its disk mounted?")
        return str(resolved)


def _s3(profile: str | None, endpoint: str | None = None) -> S3FileSystem:
    """Somebody waits for an answer, and the reconciler asks again: seconds, not the minute that training waits."""
    fs = S3FileSystem(
        **({"profile": profile} if profile else {}),
        **({"endpoint_url": endpoint} if endpoint else {}),
        config_kwargs={
            "connect_timeout": 3,
            "read_timeout": 8,
            "retries": {"mode": "standard", "total_max_attempts": 3},
            "signature_version": "s3v4",  # else links would be signed by the old way, which many servers refuse
        },
        use_listings_cache=False,
        max_concurrency=1,  # a small file is one request, not two
        skip_instance_cache=True,
    )
    fs.retries = 2  # of a body that is cut; s3fs's own, around botocore's
    return fs


@contextmanager
def _asked(place: str) -> Iterator[None]:
    """Whatever a storage raises, as `StorageUnreachable` with the place, what happened and what to do."""
    try:
        yield
    # ValueError is botocore's for an endpoint that is no URL.
    except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, ValueError) as error:
        text = f"{place}: {_sentence(error)}"
        raise StorageUnreachable(re.sub(r"://[^/@\s]*@", "://…@", text)) from error  # an endpoint may hold a password


def _sentence(error: Exception) -> str:
    code = _code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket: create it, or correct the URI"
    if code and isinstance(error, PermissionError):
        return f"the credentials were refused ({code}): {CREDENTIALS}"
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)):
        return f"{error}: {CREDENTIALS}"
    if isinstance(error, (boto.BotoCoreError, aiohttp.ClientError, ValueError)):
        return f"cannot be reached: {error}. Check AWS_ENDPOINT_URL and that the server runs"
    return str(error) or type(error).__name__


def _code(error: BaseException) -> str | None:
    """S3's own word behind an error."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, boto.ClientError):
            return str(cause.response.get("Error", {}).get("Code"))
        cause = cause.__cause__
    return None


def _must_have_bucket(error: OSError) -> None:
    """A file that is not there is an answer; a bucket that is not there is none."""
    if _code(error) == "NoSuchBucket":
        raise error

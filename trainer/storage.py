"""Files below one folder, on a disk or in S3, through fsspec.

botocore finds S3's endpoint and credentials by itself: in the environment's AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in the profile that AWS_PROFILE names. A URI never holds credentials.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import random
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from trainer.errors import StorageError
from trainer.temporary import atomic_write, temporary_folder


class NoAnswer(ConnectionError):
    """S3 did not complete a request within the time for which it is retried."""


CONNECT_SECONDS, READ_SECONDS = 5, 15
PATIENCE_SECONDS = 60.0
"""A request with a transient failure is retried for this long after its first failure. An outage of half a minute goes
unnoticed; a permanent one raises an error after this time and at most two time-outs."""
LONGEST_PAUSE_SECONDS: Final = 5.0
_patience: ContextVar[float | None] = ContextVar("patience", default=None)

REMOTE_ERRORS: Final = (NoAnswer, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, ResponseParserError)
"""Errors that only remote storage raises; s3fs also raises Python's own file errors."""

_TEMPORARY_STATUS: Final = frozenset({429, 500, 502, 503, 504})
_TEMPORARY_CODES: Final = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"})
_CREDENTIALS: Final = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REFUSED_CODES: Final = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)


class S3(S3FileSystem):  # type: ignore[misc]  # s3fs carries no types
    """S3 that retries every request until `patience` ends, and that never creates a bucket.

    botocore's own retries are off: they stop after a number of tries and share a budget, so that with many readers an
    outage of seconds fails some of them. s3fs requests interrupted bodies again, up to `retries` times; it treats
    `NoAnswer` as final, so the two never multiply. Instances may be shared by threads, and a pickled one
    opens its own connections, with its process's credentials.
    """

    async def set_session(self, refresh: bool = False, kwargs: dict[str, Any] | None = None) -> Any:
        client = await super().set_session(refresh=refresh, kwargs=kwargs or {})
        client.meta.events.register("needs-retry.s3", _pause_before_retry, unique_id="rcmae-patience")
        return client

    def mkdir(self, path: str, *args: object, **kwargs: object) -> None:
        """Nothing: S3 has no folders, and s3fs would create the bucket if it did not exist."""

    def makedirs(self, path: str, *args: object, **kwargs: object) -> None:
        """Nothing, for the same reason."""


def _pause_before_retry(
    response: tuple[Any, dict[str, Any]] | None,
    attempts: int,
    caught_exception: Exception | None,
    request_dict: dict[str, Any],
    **_: object,
) -> float | None:
    """botocore's event after each try: seconds until the next one, or None to leave the answer as it is."""
    if not _is_temporary(response, caught_exception):
        return None
    now = time.monotonic()
    failing_since = request_dict["context"].setdefault("rcmae_failing_since", now)
    pause = min(LONGEST_PAUSE_SECONDS, 0.2 * 2.0 ** (attempts - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
    # s3fs's loop runs in another thread, but in the context of the thread that made the request.
    if now + pause - failing_since > patience_seconds():
        last = caught_exception or _error_of(response)
        raise NoAnswer(f"no good answer within {now - failing_since:.0f} s; the last one: {last}") from caught_exception
    return pause


def _is_temporary(response: tuple[Any, dict[str, Any]] | None, caught: Exception | None) -> bool:
    """Whether a failed request may succeed when it is repeated."""
    if response is None:
        connection_failed = isinstance(caught, (boto.ConnectionError, boto.HTTPClientError))
        return connection_failed and not isinstance(caught, boto.SSLError)
    http, parsed = response
    return http.status_code in _TEMPORARY_STATUS or parsed.get("Error", {}).get("Code") in _TEMPORARY_CODES


def _error_of(response: tuple[Any, dict[str, Any]] | None) -> str:
    """Status, code and message of S3's answer."""
    http, parsed = response or (None, {})
    error = parsed.get("Error", {})
    return f"{http.status_code if http else ''} {error.get('Code', '')} {error.get('Message', '')}".strip()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Retry requests made inside for at most this many seconds."""
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


def patience_seconds() -> float:
    """How long temporary failures are retried in the current context, in seconds."""
    return _patience.get() or PATIENCE_SECONDS


def open_filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The file system behind a local path, a ``file://`` or an ``s3://`` URI, and the path within that file system.

    No request is sent yet. Raises `StorageError` for other schemes, for credentials in the URI, and for a profile or an
    endpoint that cannot be used.
    """
    scheme, colon, rest = uri.partition("://")
    if not colon or scheme == "file":
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(uri))  # noqa: SLF001 - as fsspec's url_to_fs does
    if scheme != "s3":
        raise StorageError(f"{_clean(uri)}: neither a local path nor an s3:// URI: use one of the two")
    if "@" in rest.partition("/")[0]:
        raise StorageError(f"{_clean(uri)}: a URI must not hold credentials: set {_CREDENTIALS}")
    with storage_errors(uri):
        fs = S3(
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"mode": "standard", "total_max_attempts": 1},
            },
            use_listings_cache=False,
            # One stream a file: it resumes where it was cut off, which parallel ranges of s3fs do not.
            max_concurrency=1,
        )
        try:
            fs.connect()  # sends no request
        except ValueError as error:
            raise StorageError(f"{uri}: {_clean(str(error))}: check AWS_ENDPOINT_URL") from error
        return fs, rest.rstrip("/")


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn whatever the storage raises into a `StorageError` that says where, what happened and what to do.

    ``place`` is the file, folder or URI that the message names.
    """
    try:
        yield
    except (OSError, *REMOTE_ERRORS) as error:
        raise storage_error(place, error) from error


def storage_error(place: str, error: BaseException) -> StorageError:
    """The `StorageError` for an error that the storage raised."""
    return StorageError(f"{_clean(place)}: {_clean(_explanation(error))}")


def _explanation(error: BaseException) -> str:
    """What happened and what to do."""
    code = error_code(error)
    original = str(error) or type(error).__name__
    match error:
        case _ if code == "NoSuchBucket":
            text = "there is no such bucket: create it, or correct the URI"
        case _ if code in _REFUSED_CODES:
            text = f"the credentials were refused ({code}): check {_CREDENTIALS}"
        case PermissionError() if code:
            text = f"access is denied: the credentials are wrong or lack this permission; check {_CREDENTIALS}"
        case FileNotFoundError() if code:
            text = "there is no such file"
        case boto.NoCredentialsError() | boto.PartialCredentialsError():
            text = f"the credentials are missing or incomplete: set {_CREDENTIALS}"
        case boto.ProfileNotFound():
            text = f"{original}: check AWS_PROFILE"
        case NoAnswer() | boto.ConnectionError():
            text = f"cannot be reached: {original}. Check AWS_ENDPOINT_URL and that the server is running"
        case aiohttp.ClientError() | boto.HTTPClientError():
            text = f"the connection was lost repeatedly: {original}"
        case ResponseParserError():
            text = f"the answer does not come from S3: check AWS_ENDPOINT_URL ({original.splitlines()[0]})"
        case _:
            text = original
    return text


def error_code(error: BaseException) -> str | None:
    """S3's own code behind an error; a status such as ``404`` if the answer had no body."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, boto.ClientError):
            return str(cause.response.get("Error", {}).get("Code"))
        cause = cause.__cause__
    return None


def _clean(text: str) -> str:
    """The text without the user names and passwords that its URLs may hold."""
    return re.sub(r"://[^/@\s]*@", "://…@", text)


class Store:
    """A folder by its URI or path. Paths given to its methods are relative to it, with forward slashes.

    Every method raises a `StorageError` that names the file or folder if the storage refuses or cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.fs, root = open_filesystem(uri)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """A file's path within the file system."""
        return posixpath.join(self.root, name) if name else self.root

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: a reader sees the old content or the new, never a part."""
        with self._errors(name):
            if not self.is_local:
                self.fs.pipe_file(self.path(name), data)
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target, fsync=True) as partial:
                partial.write_bytes(data)

    def read(self, name: str) -> bytes:
        with self._errors(name):
            data: bytes = self.fs.cat_file(self.path(name))
            return data

    def exists(self, name: str) -> bool:
        with self._errors(name), _absence_is_fine():
            self.fs.info(self.path(name))
            return True
        return False

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        with self._errors(name):
            return int(self.fs.info(self.path(name))["size"])

    def names(self, folder: str) -> list[str]:
        """Sorted names directly below a folder; none if it does not exist."""
        with self._errors(folder), _absence_is_fine():
            root = self.path(folder)
            paths = {str(path).rstrip("/") for path in self.fs.ls(root, detail=False)}
            # S3 consoles create an object with the folder's own name to mark it.
            return sorted(posixpath.basename(path) for path in paths - {root})
        return []

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with everything below it, if it exists."""
        with self._errors(name), _absence_is_fine():
            if self.is_local:
                self.fs.rm(self.path(name), recursive=True)
                return
            # One by one: s3fs ignores S3's errors about single files when it deletes several in one request.
            for path in self.fs.find(self.path(name)):
                self.fs.rm_file(path)

    def upload(self, directory: Path, folder: str) -> None:
        """Copy all files below a local directory to a folder."""
        for file in sorted(file for file in directory.rglob("*") if file.is_file()):
            name = posixpath.join(folder, file.relative_to(directory).as_posix())
            with self._errors(name):
                self.fs.makedirs(posixpath.dirname(self.path(name)), exist_ok=True)
                self.fs.put_file(str(file), self.path(name))

    @contextmanager
    def local_copy(self, folder: str, only: Collection[str] | None = None) -> Iterator[Path]:
        """A local directory with a folder's files, or those named in ``only``: the folder itself if it is local."""
        if self.is_local:
            yield Path(self.path(folder))
            return
        with temporary_folder() as directory:
            for name in self.names(folder) if only is None else sorted(only):
                file = posixpath.join(folder, name)
                with self._errors(file):
                    self.fs.get_file(self.path(file), str(directory / name))
            yield directory

    @contextmanager
    def new_folder(self, folder: str) -> Iterator[Path]:
        """A local directory whose files are stored in the folder at the end: the folder itself if it is local.

        Files of a local folder have reached the disk afterwards. If writing fails, an incomplete folder may remain.
        """
        if not self.is_local:
            with storage_errors("the node's temporary files"), temporary_folder() as directory:
                yield directory
                self.upload(directory, folder)
            return
        with self._errors(folder):
            directory = Path(self.path(folder))
            directory.mkdir(parents=True, exist_ok=True)
            yield directory
            for file in directory.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        with storage_errors(f"{self.uri.rstrip('/')}/{name}"):
            yield


@contextmanager
def _absence_is_fine() -> Iterator[None]:
    """Accept that a file or folder is missing, but not that the bucket is."""
    try:
        yield
    except FileNotFoundError as error:
        if error_code(error) == "NoSuchBucket":
            raise


def sha256_of(file: Path) -> str:
    """Hexadecimal sha256 of a local file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

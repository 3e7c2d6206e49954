"""Reading the bytes of a dataset's files, on a disk, a mount or S3.

A failure to read bytes says nothing about the images in them: it is retried for as long as a request to S3 is, then
raised as `StorageError`. A failure to parse the bytes means that the data is damaged. Where an error occurs
distinguishes the two; its class does not, because Pillow, pyarrow and tarfile raise `OSError` for damaged data too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from functools import partial
from typing import IO, TypeVar

from trainer.errors import StorageError
from trainer.patience import retry
from trainer.storage import REMOTE_ERRORS, error_code, patience_seconds, storage_error

T = TypeVar("T")


def shown_name(name: str) -> str:
    """A file's name or path for messages and results, which must be valid Unicode where names need not be."""
    return name.encode(errors="backslashreplace").decode()


def read_patiently(place: str, read: Callable[[], T]) -> T:
    """The result of ``read``, which reads the file or folder ``place``; raises `StorageError` if it keeps failing.

    For S3 ``read`` is called once: `storage.S3` retries each request by itself.
    """
    remote = place.startswith("s3://")
    return retry(
        read,
        (OSError, *REMOTE_ERRORS),
        patience_seconds(),
        failure=partial(reading_error, place),
        is_temporary=lambda _: not remote,
    )


def reading_error(place: str, error: Exception) -> StorageError:
    """A `StorageError` that says which file or folder could not be read, why, and what to do."""
    remote = place.startswith("s3://")
    place = shown_name(place)
    if isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchBucket":
        return StorageError(
            f"{place}: the file was there when the dataset was listed and is gone: restore it or mount it again; if it "
            "was removed on purpose, retry from scratch"
        )
    if remote or not isinstance(error, OSError):
        return storage_error(place, error)
    # Without the path, which the message has already.
    cause = str(OSError(error.errno, error.strerror)) if error.strerror else str(error)
    if isinstance(error, PermissionError):
        return StorageError(f"{place}: {cause}: give read permission to user id {os.geteuid()}, which the job runs as")
    return StorageError(f"{place}: it cannot be read: {cause}: check the disk or the mount that it is on")


class DatasetFile(io.RawIOBase):
    """A file of a dataset, to hand to a library that parses it. For one thread at a time.

    A failure to read it passes through the library as `StorageError`, so an `OSError` from there is about the content.
    """

    def __init__(self, place: str, opener: Callable[[], IO[bytes]]) -> None:
        super().__init__()
        self._place, self._opener = place, opener
        self._file: IO[bytes] | None = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._patiently(lambda file: file.seek(0, os.SEEK_END))
        if offset < 0:  # a damaged file led there
            raise OSError(errno.EINVAL, f"there is no byte {offset}")
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """All of the ``size`` bytes, or those up to the end of the file."""
        chunks: list[bytes] = []
        while size:  # one call may return less than was asked for
            chunk = self._patiently(partial(self._read_chunk, size=size))
            if not chunk:
                break
            chunks.append(chunk)
            self._position += len(chunk)
            if size > 0:
                size -= len(chunk)
        return b"".join(chunks)

    def _read_chunk(self, file: IO[bytes], size: int) -> bytes:
        file.seek(self._position)
        return file.read(size)

    def _patiently(self, operation: Callable[[IO[bytes]], T]) -> T:
        return read_patiently(self._place, lambda: self._with_open_file(operation))

    def _with_open_file(self, operation: Callable[[IO[bytes]], T]) -> T:
        """The result of ``operation``. After a failure the next call reopens the file: its handle may be stale."""
        try:
            if self._file is None:
                self._file = self._opener()
            return operation(self._file)
        except OSError:
            self._close_file()
            raise

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        self._close_file()
        super().close()

"""The bytes of a dataset's files, on a disk, a mount or S3.

A failure to read bytes says nothing about the images in them: it is retried for as long as a request to S3 is, then
raised as `StorageError`. A failure to parse the bytes is the data's own fault. Where an error happens tells the two
apart; its class does not, because Pillow, pyarrow and tarfile raise `OSError` for damaged data too.
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


def read_patiently(place: str, read: Callable[[], T]) -> T:
    """What ``read`` returns about the file or folder at ``place``; raises `StorageError` where it keeps failing.

    S3 is asked once: `storage.S3` retries each request by itself.
    """
    remote = place.startswith("s3://")
    return retry(
        read,
        (OSError, *REMOTE_ERRORS),
        patience_seconds(),
        failure=partial(reading_error, place),
        passing=lambda _: not remote,
    )


def reading_error(place: str, error: Exception) -> StorageError:
    """Which file or folder could not be read, why, and what to do."""
    remote = place.startswith("s3://")
    place = place.encode(errors="backslashreplace").decode()  # names may be no Unicode, messages must be
    if isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchBucket":
        return StorageError(
            f"{place}: it was there when the dataset was listed and is gone: put it back or mount it again; "
            "if it was removed on purpose, retry from scratch"
        )
    if remote or not isinstance(error, OSError):
        return storage_error(place, error)
    # Without the path, which `place` gives.
    said = str(OSError(error.errno, error.strerror)) if error.strerror else str(error)
    if isinstance(error, PermissionError):
        return StorageError(f"{place}: {said}: let the user with id {os.geteuid()}, as whom the job runs, read it")
    return StorageError(f"{place}: it cannot be read: {said}: check the disk or the mount that it lies on")


class DatasetFile(io.RawIOBase):
    """A file of a dataset for libraries that parse it, for one thread at a time.

    Failures to read it pass through them as `StorageError`, so that an `OSError` of theirs is about the content.
    """

    def __init__(self, place: str, opener: Callable[[], IO[bytes]]) -> None:
        super().__init__()
        self._place, self._opener = place, opener
        self._file: IO[bytes] | None = None
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            offset += self._patiently(lambda file: file.seek(0, os.SEEK_END))
        if offset < 0:  # a damaged file led there
            raise OSError(errno.EINVAL, f"there is no byte {offset}")
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """All of the ``size`` bytes, or those up to the end of the file."""
        parts: list[bytes] = []
        while size:  # the system may give less than it was asked for
            part = self._patiently(partial(self._read_part, size=size))
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            if size > 0:
                size -= len(part)
        return b"".join(parts)

    def _read_part(self, file: IO[bytes], size: int) -> bytes:
        file.seek(self._at)
        return file.read(size)

    def _patiently(self, use: Callable[[IO[bytes]], T]) -> T:
        return read_patiently(self._place, lambda: self._use(use))

    def _use(self, use: Callable[[IO[bytes]], T]) -> T:
        """The file is opened anew after a failure, since its handle may be stale."""
        try:
            if self._file is None:
                self._file = self._opener()
            return use(self._file)
        except OSError:
            self._drop()
            raise

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        self._drop()
        super().close()

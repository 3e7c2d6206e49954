"""Temporary folders that later workers sweep if a process is killed, and files written atomically."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.logger import logger

PREFIX: Final = "rcmae-tmp-"
"""Only these folders are swept: the service has others whose names begin with `rcmae-`."""
SWEEP_AGE_SECONDS: Final = 3600.0
"""A younger folder is left alone: its process may not have locked it yet."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, removed at the end and locked until then; the kernel releases the lock if the process dies.

    Raises `OSError` if it cannot be created.
    """
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory)
        os.close(lock)


@contextmanager
def atomic_write(target: Path, *, fsync: bool, partial: Path | None = None) -> Iterator[Path]:
    """A path to write a file to, which is renamed to ``target`` at the end: readers see the old content or the new.

    With ``fsync`` the content reaches the disk before the rename. ``partial`` is the path to write to, by default a new
    hidden name beside the target. If writing fails, the partial file is removed and the target stays as it was.
    """
    partial = partial or target.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        yield partial
        if fsync:
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sweep_temporary_folders() -> None:
    """Remove this user's temporary folders that are at least an hour old and that no process holds; log each."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            _remove_if_abandoned(directory)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # another process has swept it, it is no folder, or it belongs to another user
        except OSError as error:
            logger.warning("Could not remove %s, which a process left behind: %s", directory, error)


def _remove_if_abandoned(directory: Path) -> None:
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(lock)
        age = time.time() - status.st_mtime
        if status.st_uid != os.getuid() or age < SWEEP_AGE_SECONDS:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
        logger.info("Removed %s, which a process left behind %.0f minutes ago", directory, age / 60)
    except BlockingIOError:
        return  # its process is alive
    finally:
        os.close(lock)

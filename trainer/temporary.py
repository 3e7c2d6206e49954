"""Temporary folders that a killed process does not leave for ever."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.logger import logger

PREFIX: Final = "rcmae-tmp-"
"""Of no other folder: whatever else is named `rcmae-…` among temporary files belongs to others."""
SWEEP_AGE_SECONDS: Final = 3600.0

"""That of `logs.py`, which stands on the storage, which stands on this."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, removed at the end. While its process lives it is locked; the kernel undoes that at any death.

    Raises `OSError` where none can be made.
    """
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory)
        os.close(lock)


def sweep_temporary_folders() -> None:
    """Remove this user's folders that nobody holds any more, from an hour of age on; a log line each."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            _remove_if_left(directory)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # another sweep's, no folder, or another user's
        except OSError as error:
            logger.warning("%s, which a process left, stays: %s", directory, error)


def _remove_if_left(directory: Path) -> None:
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(lock)
        age = time.time() - status.st_mtime
        if status.st_uid != os.getuid() or age < SWEEP_AGE_SECONDS:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
        logger.info("Removed %s, which a process left %.0f minutes ago", directory, age / 60)
    except BlockingIOError:
        return  # its owner lives
    finally:
        os.close(lock)

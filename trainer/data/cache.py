"""A node's copies of datasets: where they are kept, who uses them, and how room is made for new ones.

The copies lie below one folder, shared by all workers of the node and by later jobs: files staged from elsewhere
(`staging`) and images kept decoded (`decoded`). The first worker that needs a copy makes it, under a lock; the others
wait for it. A copy counts once its last act, a rename or the last line of its journal, is done. Unused copies are
removed when new ones need room, the longest unused first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.storage import storage_errors

FOLDER_VARIABLE: Final = "RCMAE_CACHE_DIR"
LIMIT_VARIABLE: Final = "RCMAE_CACHE_BYTES"

_PARTIAL: Final = ".part"
_MAKING: Final = ".making"
_IN_USE: Final = ".in-use"
_held_locks: Final[dict[Path, IO[bytes]]] = {}
"""Open lock files of the copies that this process uses: the locks are released when the process ends."""


def default_folder() -> Path:
    """The folder for copies: `RCMAE_CACHE_DIR`, or by default a folder of the user's among temporary files."""
    configured = os.environ.get(FOLDER_VARIABLE)
    return Path(configured) if configured else Path(tempfile.gettempdir()) / f"rcmae-cache-{os.getuid()}"


@dataclass(frozen=True)
class Cache:
    """The folder of a node's copies."""

    folder: Path = field(default_factory=default_folder)

    @contextlib.contextmanager
    def lock(self, copy: Path) -> Iterator[None]:
        """Hold a copy exclusively to look for it or to make it; afterwards keep it while this process lives.

        Raises `StorageError` for what this node's disk refuses meanwhile.
        """
        with storage_errors(str(copy)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _beside(copy, _MAKING).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
                if copy.exists():
                    os.utime(copy)  # when it was last used
                    if copy not in _held_locks:
                        use = _beside(copy, _IN_USE).open("ab")
                        fcntl.flock(use, fcntl.LOCK_SH)
                        _held_locks[copy] = use

    def make_room(self, size: int) -> str | None:
        """Remove unused copies until ``size`` bytes fit; returns the reason if they do not."""
        sizes = {copy: _size(copy) for copy in self._copies()}
        limit, where = self._limit(sum(sizes.values())), f"{self.folder} ({LIMIT_VARIABLE})"
        if size > limit:
            return f"{format_bytes(size)} do not fit into the {format_bytes(limit)} of the cache in {where}"
        for copy in list(sizes):
            if sum(sizes.values()) + size <= limit:
                return None
            if self._remove_unused(copy):
                del sizes[copy]
        used = sum(sizes.values())
        if used + size > limit:
            return (
                f"{format_bytes(size)} do not fit: {format_bytes(used)} of the {format_bytes(limit)} of the cache in "
                f"{where} are in use"
            )
        return None

    def _limit(self, used: int) -> int:
        """Bytes that all copies together may take: `RCMAE_CACHE_BYTES`, or half of what the disk has for them."""
        configured = os.environ.get(LIMIT_VARIABLE)
        if configured:
            if not configured.isdecimal():
                raise StorageError(f"{LIMIT_VARIABLE}: {configured!r} is not a number of bytes: set it to digits only")
            return int(configured)
        self.folder.mkdir(parents=True, exist_ok=True)
        return (shutil.disk_usage(self.folder).free + used) // 2

    def _copies(self) -> list[Path]:
        """Every copy, incomplete ones included, the longest unused first."""
        last_used: dict[Path, float] = {}
        for kind in ("staged", "decoded"):
            for path in (self.folder / kind).glob("*"):
                if path.suffix not in {_MAKING, _IN_USE}:
                    with contextlib.suppress(FileNotFoundError):  # another process has just finished or removed it
                        last_used[path.with_suffix("")] = path.stat().st_mtime
        return sorted(last_used, key=last_used.__getitem__)

    def _remove_unused(self, copy: Path) -> bool:
        """Remove a copy unless a process makes or uses it; returns whether it was removed."""
        with _beside(copy, _MAKING).open("ab") as making, _beside(copy, _IN_USE).open("ab") as use:
            try:
                fcntl.flock(making, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            logger.info("Removing %s from the cache: no process uses it, and others need the room", copy)
            if copy.is_dir():
                shutil.rmtree(copy)
            for file in (copy, partial_file(copy)):
                file.unlink(missing_ok=True)
            return True


def partial_file(copy: Path) -> Path:
    """Where a copy's file is written until it is complete. The name is fixed, so that a killed process leaves one at
    most, which the next one overwrites and which counts as space in use.
    """
    return _beside(copy, _PARTIAL)


def _beside(copy: Path, suffix: str) -> Path:
    return copy.with_name(copy.name + suffix)


def _size(copy: Path) -> int:
    """Bytes of a copy; files that vanish meanwhile count nothing."""
    total, pending = 0, [copy, partial_file(copy)]
    while pending:
        path = pending.pop()
        with contextlib.suppress(FileNotFoundError):
            pending += path.iterdir() if path.is_dir() else []
            total += path.stat().st_size
    return total


def format_bytes(count: int) -> str:
    """`1.50 GiB`, or `3.0 MiB` below a quarter of a GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"

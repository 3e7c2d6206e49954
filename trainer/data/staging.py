"""A dataset's files copied once to a node's disk, each checked against its sha256.

A journal in the copy's folder lists the files that are in place, with their sums.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from trainer.data.cache import Cache, format_bytes, partial_file
from trainer.data.inspections import LOG_EVERY_SECONDS
from trainer.data.sources import UNREADABLE_SUFFIXES, Files, suffix_of
from trainer.errors import StorageError
from trainer.logger import logger
from trainer.storage import open_filesystem, sha256_of, storage_errors
from trainer.temporary import atomic_write

STAGING_THREADS: Final = 8
COPY_BYTES: Final = 2**20
"""Bytes of a file that are copied from a mount at a time."""


def stage(files: Files, cache: Cache, wanted: Collection[int] | None = None) -> Files | str:
    """The same files on this node's disk, copied once and checked against their sums; or the reason they do not fit.

    ``wanted`` are the numbers of those to copy, None for all; images of kinds that cannot be read never are.
    Raises `StorageError` if a file cannot be read where it lies or written here.
    """
    copy = cache.folder / "staged" / files.listing[:32]
    paths = tuple(str(copy / f"{number // 1000:06d}" / f"{number % 1000:03d}") for number in range(len(files.names)))
    with cache.lock(copy):
        journal = copy / "journal.jsonl"
        verified = _verified_files(journal, paths, files.sizes)
        missing = [
            number
            for number in (range(len(paths)) if wanted is None else sorted(wanted))
            if number not in verified
            and number not in files.dangling
            and suffix_of(files.names[number]) not in UNREADABLE_SUFFIXES
        ]
        if missing:
            reason = cache.make_room(sum(files.sizes[number] for number in missing))
            if reason:
                return reason
            _copy_files(files, paths, missing, journal)
    return replace(files, remote=False, paths=paths)


class _Entry(NamedTuple):
    """A line of the journal: a file that was in place and had this sum."""

    file: int
    sha256: str
    stamp: list[int]
    """The file's times and inode, which change when it is written."""
    boot: str
    """Identity of the node's boot in which it was checked: a crash may have lost what was not yet on the disk."""

    def line(self) -> str:
        return json.dumps(self._asdict()) + "\n"


def _verified_files(journal: Path, paths: Sequence[str], sizes: Sequence[int]) -> set[int]:
    """Numbers of the files that are in place as the journal says: of the right size and sum.

    Sums are computed once in a boot of the node, unless a file's times have changed.
    """
    if not journal.is_file():
        return set()
    entries: dict[int, _Entry] = {}
    for line in journal.read_text().splitlines():
        with contextlib.suppress(ValueError, TypeError):  # cut short by a kill, or of an earlier version: copied again
            entry = _Entry(**json.loads(line))
            entries[entry.file] = entry
    boot, checked = _boot(), []

    def is_intact(entry: _Entry) -> bool:
        path = Path(paths[entry.file])
        if not path.is_file() or path.stat().st_size != sizes[entry.file]:
            return False
        stamp = _stamp(path)
        if entry.boot == boot and entry.stamp == stamp:
            return True
        fine = sha256_of(path) == entry.sha256
        if fine:
            checked.append(entry._replace(stamp=stamp, boot=boot))
        return fine

    listed = [entry for number, entry in entries.items() if number < len(paths)]
    with ThreadPoolExecutor(STAGING_THREADS) as pool:
        intact = {entry.file for entry, fine in zip(listed, pool.map(is_intact, listed), strict=True) if fine}
    if len(intact) < len(listed):
        logger.warning(
            "%d staged files below %s have changed or are missing: copying them again",
            len(listed) - len(intact),
            journal.parent,
        )
    if checked:
        with journal.open("a") as log:
            log.writelines(["\n", *(entry.line() for entry in checked)])
    return intact


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _copy_files(files: Files, paths: Sequence[str], missing: Sequence[int], journal: Path) -> None:
    total, copied, last_logged = sum(files.sizes[number] for number in missing), 0, time.monotonic()
    logger.info("Staging %d files of %s (%s) to %s", len(missing), files.uri, format_bytes(total), journal.parent)
    journal.parent.mkdir(parents=True, exist_ok=True)

    def copy(number: int) -> str:
        return _copy_one(files, number, Path(paths[number]))

    with journal.open("a") as log, ThreadPoolExecutor(STAGING_THREADS, thread_name_prefix="staging") as pool:
        log.write("\n")  # ends a line that a kill may have cut short
        try:
            for number, digest in zip(missing, pool.map(copy, missing), strict=True):
                log.write(_Entry(number, digest, _stamp(Path(paths[number])), _boot()).line())
                log.flush()
                copied += files.sizes[number]
                if time.monotonic() - last_logged > LOG_EVERY_SECONDS:
                    last_logged = time.monotonic()
                    logger.info("Staging %s: %s of %s", files.uri, format_bytes(copied), format_bytes(total))
        finally:
            pool.shutdown(cancel_futures=True)


def _copy_one(files: Files, number: int, target: Path) -> str:
    """Copy one file into place, whole or not at all; returns its sha256."""
    source = files.location(number)
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(str(target)), atomic_write(target, fsync=True, partial=partial_file(target)) as partial:
        if files.remote:
            fs, _ = open_filesystem(files.uri)
            with storage_errors(source):
                fs.get_file(files.paths[number], str(partial))
        else:
            with files.open_file(number) as original, partial.open("wb") as copy:
                shutil.copyfileobj(original, copy, COPY_BYTES)
        size = partial.stat().st_size
        if size != files.sizes[number]:
            raise StorageError(
                f"{source}: {size} bytes were copied, but the file had {files.sizes[number]} when it was listed: if it "
                "was overwritten, retry the job"
            )
        return sha256_of(partial)

"""The files that a job leaves for people, as a folder: each appears whole or not at all, several at a time.

Unlike a backbone's version, a job may leave more files while they are downloaded. So a folder is completed rather than
replaced: what has come already is not requested again, and a partial file goes on where it ended.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Event, Lock
from typing import Final
from urllib.parse import quote

from service.client.connection import Connection
from service.client.download import Progress, fetch
from service.client.errors import DownloadError, Patience
from service.client.listing import PART, must_differ, problem_of_path
from service.jobs.output_schemas import JobFileView

AT_A_TIME: Final = 4
"""Files that are downloaded at a time."""
SAME_S: Final = 1e-3
"""A file whose time of change differs by less is the job's file: a download sets it."""


class Interrupted(Exception):
    """Another file's download has failed, or the user has stopped them all."""


def fetch_files(
    service: Connection,
    job_id: str,
    files: Sequence[JobFileView],
    out: Path,
    new_patience: Callable[[], Patience],
    progress: Progress | None,
    force: bool,
) -> None:
    """Complete the folder ``out``; see `Client.download_files` for the errors."""
    for file in files:
        problem = problem_of_path(file.path)
        if problem:
            raise DownloadError(f"the service names a file {problem}: {file.path!r}; nothing is downloaded")
    must_differ([PurePosixPath(file.path) for file in files])
    missing = [file for file in files if not _has_come(file, out / file.path)]
    _must_be_free(missing, out, force)
    total = _Total(sum(file.bytes for file in files), progress)
    total.add(sum(file.bytes for file in files) - sum(file.bytes for file in missing))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        running = [
            pool.submit(_fetch, service, f"/v1/jobs/{job_id}/files/{quote(each.path)}", each, out, new_patience, total)
            for each in missing
        ]
        try:
            for future in running:
                future.result()
        finally:
            total.stopped.set()
            pool.shutdown(cancel_futures=True)


def _has_come(file: JobFileView, target: Path) -> bool:
    if not target.is_file():
        return False
    found = target.stat()
    return found.st_size == file.bytes and abs(found.st_mtime - file.modified_at.timestamp()) < SAME_S


def _must_be_free(files: Sequence[JobFileView], out: Path, force: bool) -> None:
    """Raises `FileExistsError` for files that must not be replaced."""
    taken = [out / file.path for file in files if os.path.lexists(out / file.path)]
    folder = next((each for each in taken if each.is_dir()), None)
    if folder:
        raise FileExistsError(f"{folder} is a folder, and the job has a file of this name: name another folder")
    if taken and not force:
        raise FileExistsError(
            f"{taken[0]} exists, and is not the job's file as it is now: name another folder, or replace it (--force)"
        )


class _Total:
    """What all downloads together have received."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._received, self._lock = total, progress, 0, Lock()
        self.stopped = Event()

    def add(self, count: int) -> None:
        with self._lock:
            self._received += count
            if self._progress:
                self._progress(self._received, self._total)

    def of_file(self) -> Progress:
        """The progress of one file, which ends the download once all are to end."""
        before = 0

        def report(received: int, _: int) -> None:
            nonlocal before
            if self.stopped.is_set():
                raise Interrupted
            self.add(received - before)
            before = received

        return report


def _fetch(
    service: Connection, url: str, file: JobFileView, out: Path, new_patience: Callable[[], Patience], total: _Total
) -> None:
    target = out / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(file.etag.encode()).hexdigest()[:16]
    part = target.with_name(f".{target.name}.{identity}{PART}")
    report = total.of_file()
    with part.open("ab") as output:
        if output.tell() < file.bytes or not file.bytes:
            fetch(service, url, output, new_patience(), report, file.etag, file.bytes)
        report(output.tell(), file.bytes)
        output.flush()
        os.fsync(output.fileno())
    os.utime(part, (file.modified_at.timestamp(), file.modified_at.timestamp()))
    part.replace(target)

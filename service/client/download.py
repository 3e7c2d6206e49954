"""Downloads that appear whole or not at all: a backbone's files as a folder, and a single file.

Both resume: at once when a connection breaks or the service restarts, and a folder also when it is pulled again after
its process was killed.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import httpx

from service.backbones.schemas import FileView, VersionView
from service.client.connection import PACE_BYTES, Connection
from service.client.errors import ApiError, DownloadError, Patience, UnacceptableAnswer
from service.client.listing import PART, PullFormat, select_files
from trainer.protocol.names import BACKBONE_SUMS as SUMS

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Progress = Callable[[int, int], None]
"""Called with the bytes received and the total."""

MARK: Final = ".rcmae-"
"""Part of the names of files beside a target while it is pulled: the lock, the partial download, the old folder."""


# --- one file ---------------------------------------------------------------------------------------------------------


def fetch_file(
    service: Connection,
    path: str,
    out: Path,
    patience: Patience,
    progress: Progress | None,
    etag: str | None = None,
    size: int | None = None,
) -> int:
    """Download one file as the new file ``out``; returns its size. ``etag`` and ``size`` are as for `fetch`.

    Resumes where a connection broke. Raises `FileExistsError` if ``out`` exists, `DownloadError` if the size is not the
    one that the service names, and the errors of `Patience.wait`.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: name a file that does not, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    staging = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as output:
            fetch(service, path, output, patience, progress, etag, size)
            count = output.tell()
        staging.chmod(0o644)  # mkstemp makes files that only their owner can read
        staging.rename(out)
    finally:
        staging.unlink(missing_ok=True)
    return count


def fetch(
    service: Connection,
    path: str,
    output: BinaryIO,
    patience: Patience,
    progress: Progress | None = None,
    etag: str | None = None,
    size: int | None = None,
) -> None:
    """Append the rest of a file to ``output``, which holds its first bytes and is positioned after them.

    With an ``etag`` the download starts over if the service has another file by then; without one, a file may only
    grow. Not one byte more is written than ``size`` or, without it, than the service announces.

    Raises `DownloadError` if the size is not that one, `UnacceptableAnswer` as `Connection.body` does, and the errors
    of `Patience.wait`. Only bytes that no earlier connection brought count as a sign of life.
    """
    _Download(service, path, output, patience, progress, etag, size).run()


@dataclass
class _Download:
    service: Connection
    path: str
    output: BinaryIO
    patience: Patience
    progress: Progress | None
    etag: str | None
    size: int | None
    furthest: int = 0
    """The position at which the patience was last renewed."""

    def run(self) -> None:
        self.furthest = self.output.tell()
        while True:
            try:
                self._rest()
            except (httpx.TransportError, ApiError) as error:
                self.patience.wait(error)
            else:
                return

    def _rest(self) -> None:
        """Download over one connection; returns when the file is complete."""
        position = self.output.tell()
        headers = {"Range": f"bytes={position}-"} if position else {}
        if position and self.etag:
            headers["If-Range"] = self.etag
        with self.service.file(self.path, headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and _size_of(response) == position:
                return  # the connection broke after the last byte
            self.service.must_succeed(response)
            self._write(response)

    def _write(self, response: httpx.Response) -> None:
        begin = self._begin(response)
        if "Content-Length" not in response.headers:
            raise DownloadError(f"{self.path}: the response has no Content-Length; does a proxy change it on the way?")
        length = int(response.headers["Content-Length"])
        total = begin + length
        if self.size is not None and total != self.size:
            raise DownloadError(f"{self.path}: the service sends {total} bytes, and it lists {self.size}")
        if begin != self.output.tell():
            self.output.seek(begin)
            self.output.truncate()
        for piece in self.service.body(response, length):
            self.output.write(piece)
            if self.output.tell() >= self.furthest + PACE_BYTES:
                self.furthest = self.output.tell()
                self.patience.renew()
            if self.progress:
                self.progress(self.output.tell(), total)
        if self.output.tell() != total:
            raise DownloadError(f"{self.path}: received {self.output.tell()} bytes, expected {total}; nothing is kept")

    def _begin(self, response: httpx.Response) -> int:
        """The position in the file of the response's first byte: 0 where the service sends the whole file."""
        if response.status_code == httpx.codes.OK:
            return 0
        position = self.output.tell()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            raise DownloadError(f"{self.path}: the service answers {response.status_code}, which brings no file")
        if not response.headers.get("Content-Range", "").startswith(f"bytes {position}-"):
            raise DownloadError(f"{self.path}: requested the bytes from {position} on, and the service sent others")
        return position


def _size_of(response: httpx.Response) -> int | None:
    """The size of the whole file, from a 416 response."""
    size = response.headers.get("Content-Range", "").removeprefix("bytes */")
    return int(size) if size.isdecimal() else None


# --- a folder ---------------------------------------------------------------------------------------------------------


class Fetcher:
    """Downloads the files of a version."""

    def __init__(self, service: Connection, patience_s: float, progress: Progress | None) -> None:
        self._service, self._patience_s, self._progress = service, patience_s, progress
        self._completed, self._total = 0, 0

    def bytes_of(self, file: FileView, most: int) -> bytes:
        """A small file, checked against its sha256. Raises `DownloadError` for one of more than ``most`` bytes."""
        if file.size > most:
            raise DownloadError(f"{file.path}: the service lists {file.size} bytes, and at most {most} are expected")
        data = BytesIO()
        fetch(self._service, file.url, data, Patience(self._patience_s, self._service.url), None, None, file.size)
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        if digest != file.sha256:
            raise DownloadError(f"{file.path}: sha256 is {digest}, the registry's is {file.sha256}; nothing is kept")
        return data.getvalue()

    def folder(
        self,
        version: VersionView,
        form: PullFormat,
        out: Path,
        force: bool = False,
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        """Download one format of a version, or all, as the new folder ``out``; see `Client.pull` for the errors.

        ``beside`` are further files of the folder, by name.
        """
        files, beside = select_files(version, form), beside or {}
        out = Path(os.path.abspath(out))  # noqa: PTH100 - must not follow a link at this path
        out.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(out):
            old = _sibling(out, "old")
            if old.exists() and not out.exists():  # a process was killed while it replaced the folder
                old.rename(out)
            _check_target(out, force)
            staging = _sibling(out, f"{hashlib.sha256(f'{version.commit} {form}'.encode()).hexdigest()[:16]}.partial")
            try:
                self._fill(version, files, staging, beside)
            except UnacceptableAnswer:  # permanent; after other errors the partial download is kept for the next try
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _replace(staging, out, old)
            abandoned = f"{glob.escape(_sibling(out, '').name)}*.partial"
            for folder in out.parent.glob(abandoned):  # downloads of other versions that were never finished
                shutil.rmtree(folder, ignore_errors=True)

    def _fill(
        self,
        version: VersionView,
        files: dict[PurePosixPath, FileView],
        staging: Path,
        beside: Mapping[str, bytes],
    ) -> None:
        """Complete ``staging``: download what it lacks, check what it has, and remove any other file."""
        self._completed, self._total = 0, sum(file.size for file in files.values())
        staging.mkdir(exist_ok=True)
        _must_have_room(staging, self._total)
        for path, file in files.items():
            try:
                self._file(file, staging / path)
            except ApiError as error:
                if error.status not in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
                    raise
                message = f"{version.name}:{version.version} was deleted while it was pulled; nothing of it is kept"
                raise DownloadError(f"{message} ({error.detail})") from error
            self._completed += file.size
        if PurePosixPath(SUMS) not in files:
            lines = [f"{file.sha256}  {path}\n" for path, file in files.items()]
            (staging / SUMS).write_text("".join(lines))
        for name, data in beside.items():
            (staging / name).write_bytes(data)
        expected = {staging / path for path in (*files, PurePosixPath(SUMS), *map(PurePosixPath, beside))}
        for leftover in staging.rglob("*"):
            if leftover.is_file() and leftover not in expected:
                leftover.unlink()

    def _file(self, file: FileView, target: Path) -> None:
        """Download one file. A part from an earlier pull is completed, and replaced if its checksum is wrong then."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size and _sha256(target) == file.sha256:
            self._report(file.size, file.size)
            return
        part = target.with_name(f"{target.name}{PART}")
        resumed = part.exists()
        digest = self._complete(file, part)
        if digest != file.sha256 and resumed:
            part.unlink()
            digest = self._complete(file, part)
        if digest != file.sha256:
            raise DownloadError(f"{file.path}: sha256 is {digest}, the registry's is {file.sha256}; nothing is kept")
        part.replace(target)

    def _complete(self, file: FileView, part: Path) -> str:
        """Append the missing bytes to ``part``; returns its sha256."""
        with part.open("ab") as output:
            if output.tell() > file.size:
                output.truncate(0)
                output.seek(0)
            if output.tell() < file.size or not file.size:
                patience = Patience(self._patience_s, self._service.url)
                fetch(self._service, file.url, output, patience, self._report, f'"{file.sha256}"', file.size)
            output.flush()
            os.fsync(output.fileno())
        return _sha256(part)

    def _report(self, received: int, _: int) -> None:
        if self._progress:
            self._progress(self._completed + received, self._total)


def _must_have_room(staging: Path, total: int) -> None:
    """Raises `OSError` if the disk has no room for the bytes that ``staging`` lacks."""
    present = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    free = shutil.disk_usage(staging).free
    if total - present > free:
        reason = f"{os.strerror(errno.ENOSPC)}: the version has {total} bytes, and {free} are free"
        raise OSError(errno.ENOSPC, reason, str(staging.parent))


def _check_target(out: Path, force: bool) -> None:
    """Raises `FileExistsError` if something exists there that must not be replaced."""
    if not os.path.lexists(out):
        return
    if not force:
        raise FileExistsError(f"{out} exists: name a folder that does not, or replace it with --force")
    pulled = out.is_dir() and not out.is_symlink() and ((out / SUMS).is_file() or not any(out.iterdir()))
    if not pulled:
        raise FileExistsError(
            f"{out} is not replaced: it is not a folder that was pulled, as it has no {SUMS}. Name another one"
        )


def _replace(staging: Path, out: Path, old: Path) -> None:
    """Move ``staging`` to ``out``. An earlier folder there is moved away whole, and deleted only after that."""
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}{MARK}{what}")


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Hold the lock on ``out``, which ends with the process; raises `DownloadError` if another process holds it."""
    path = _sibling(out, "lock")
    while True:
        with path.open("ab") as lock:
            if not _try_lock(lock):
                raise DownloadError(f"another process pulls into {out} (it holds {path}): wait for it, or stop it")
            try:
                # The previous holder may have removed the file after we opened it: nobody else would see our lock.
                if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    continue
                yield
                return
            finally:
                if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    _remove(path)


def _try_lock(lock: BinaryIO) -> bool:
    """Whether we got the lock; raises `OSError` if the file system supports none."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}:
            return False
        raise
    return True


def _remove(lock: Path) -> None:
    if sys.platform != "win32":  # which cannot remove an open file: there it stays, empty
        lock.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal

import httpx

from service.backbones.schemas import FileView, VersionView
from service.client.errors import ApiError, ClientError, Patience
from trainer.protocol.names import BACKBONE_SUMS as SUMS
from trainer.spec.export import BackboneFormat

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Progress = Callable[[int, int], None]
"""Called with the bytes received and the total."""

PullFormat = Literal[BackboneFormat, "all"]
"""What to pull of a version: one format, or everything, with a folder for each format."""
ALL: Final = "all"
MARK: Final = ".rcmae-"
"""Part of the names of files beside a target while it is pulled: the lock, the partial download, the old folder."""


class DownloadError(ClientError):
    """The downloaded files are not what the service has."""


# --- one file ---------------------------------------------------------------------------------------------------------


def fetch_file(http: httpx.Client, path: str, out: Path, patience: Patience, progress: Progress | None) -> int:
    """Download one file as the new file ``out``; returns its size.

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
            fetch(http, path, output, patience, progress)
            count = output.tell()
        staging.chmod(0o644)  # mkstemp makes files that only their owner can read
        staging.rename(out)
    finally:
        staging.unlink(missing_ok=True)
    return count


def fetch(
    http: httpx.Client,
    path: str,
    output: BinaryIO,
    patience: Patience,
    progress: Progress | None = None,
    etag: str | None = None,
) -> None:
    """Append the rest of a file to ``output``, which holds its first bytes and is positioned after them.

    With an ``etag`` the download starts over if the service has another file by then; without one, a file may only
    grow. Raises `DownloadError` if the size is not the one that the service names, and the errors of `Patience.wait`.
    """
    while True:
        try:
            _fetch_rest(http, path, output, patience, progress, etag)
        except (httpx.TransportError, ApiError) as error:
            patience.wait(error)
        else:
            return


def _fetch_rest(
    http: httpx.Client, path: str, output: BinaryIO, patience: Patience, progress: Progress | None, etag: str | None
) -> None:
    """Download over one connection; returns when the file is complete."""
    headers = {"Accept-Encoding": "identity"}
    if output.tell():
        headers |= {"Range": f"bytes={output.tell()}-"} | ({"If-Range": etag} if etag else {})
    with _open(http, path, headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and _size_of(response) == output.tell():
            return  # the connection broke after the last byte
        if response.is_error:
            response.read()
            raise ApiError.of(response)
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            output.seek(0)
            output.truncate()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {output.tell()}-"):
            raise DownloadError(f"{path}: requested the bytes from {output.tell()} on, and the service sent others")
        if "Content-Length" not in response.headers:
            raise DownloadError(f"{path}: the response has no Content-Length; does a proxy change it on the way?")
        total = output.tell() + int(response.headers["Content-Length"])
        for piece in response.iter_bytes():
            output.write(piece)
            patience.renew()
            if progress:
                progress(output.tell(), total)
        if output.tell() != total:
            raise DownloadError(f"{path}: received {output.tell()} bytes, expected {total}; nothing is kept")


@contextmanager
def _open(http: httpx.Client, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """The response to a GET, after following a redirect."""
    with http.stream("GET", path, headers=headers) as response:
        if not response.has_redirect_location:
            yield response
            return
        link = response.headers["Location"]
    # A signed link into the storage, which must not get our token and has ETags of its own.
    for_storage = {name: value for name, value in headers.items() if name != "If-Range"}
    with httpx.Client(timeout=http.timeout) as storage, storage.stream("GET", link, headers=for_storage) as response:
        yield response


def _size_of(response: httpx.Response) -> int | None:
    """The size of the whole file, from a 416 response."""
    size = response.headers.get("Content-Range", "").removeprefix("bytes */")
    return int(size) if size.isdecimal() else None


# --- a folder ---------------------------------------------------------------------------------------------------------


class Fetcher:
    """Downloads the files of a version."""

    def __init__(self, http: httpx.Client, url: str, patience_s: float, progress: Progress | None) -> None:
        self._http, self._url, self._patience_s, self._progress = http, url, patience_s, progress
        self._completed, self._total = 0, 0

    def folder(self, version: VersionView, form: PullFormat, out: Path, force: bool = False) -> None:
        """Download one format of a version, or all, as the new folder ``out``; see `Client.pull` for the errors."""
        files = _select_files(version, form)
        out = Path(os.path.abspath(out))  # noqa: PTH100 - must not follow a link at this path
        out.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(out):
            old = _sibling(out, "old")
            if old.exists() and not out.exists():  # a process was killed while it replaced the folder
                old.rename(out)
            _check_target(out, force)
            staging = _sibling(out, f"{hashlib.sha256(f'{version.commit} {form}'.encode()).hexdigest()[:16]}.partial")
            try:
                self._fill(version, files, staging)
            except DownloadError:  # permanent; after other errors the partial download is kept for the next try
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _replace(staging, out, old)
            abandoned = f"{glob.escape(_sibling(out, '').name)}*.partial"
            for folder in out.parent.glob(abandoned):  # downloads of other versions that were never finished
                shutil.rmtree(folder, ignore_errors=True)

    def _fill(self, version: VersionView, files: dict[PurePosixPath, FileView], staging: Path) -> None:
        """Complete ``staging``: download what it lacks, check what it has, and remove any other file."""
        self._completed, self._total = 0, sum(file.size for file in files.values())
        staging.mkdir(exist_ok=True)
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
        expected = {staging / path for path in (*files, PurePosixPath(SUMS))}
        for leftover in staging.rglob("*"):
            if leftover.is_file() and leftover not in expected:
                leftover.unlink()

    def _file(self, file: FileView, target: Path) -> None:
        """Download one file. A part from an earlier pull is completed, and replaced if its checksum is wrong then."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size and _sha256(target) == file.sha256:
            self._report(file.size, file.size)
            return
        part = target.with_name(f"{target.name}.part")
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
                patience = Patience(self._patience_s, self._url)
                fetch(self._http, file.url, output, patience, self._report, f'"{file.sha256}"')
            output.flush()
            os.fsync(output.fileno())
        return _sha256(part)

    def _report(self, received: int, _: int) -> None:
        if self._progress:
            self._progress(self._completed + received, self._total)


def _select_files(version: VersionView, form: PullFormat) -> dict[PurePosixPath, FileView]:
    """Files by their path in the target folder; raises `DownloadError` for a format that the version lacks."""
    selected = [file for file in version.files if form == ALL or file.path.startswith(f"{form}/")]
    if not selected:
        formats = sorted({file.path.partition("/")[0] for file in version.files if "/" in file.path})
        raise DownloadError(
            f"{version.name}:{version.version} has no format {form!r}; it has {', '.join(formats) or 'no files'}"
        )
    return {_local_path(file, "" if form == ALL else form): file for file in selected}


def _local_path(file: FileView, folder: str) -> PurePosixPath:
    """The file's path in the target folder; raises for a path that would lead out of it."""
    path = PurePosixPath(file.path)
    path = path.relative_to(folder) if folder else path
    # On Windows, backslashes and drive letters can leave the folder too.
    if ".." in path.parts or path.is_absolute() or not path.parts or set("\\:") & set(str(path)):
        raise DownloadError(f"the service names a file outside its folder: {file.path!r}")
    return path


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

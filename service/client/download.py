"""Downloads that appear whole or not at all: a backbone's files as a folder, and a single file.

Both go on where they were broken off: at once when a connection breaks or the service restarts, and a folder also when
the same is pulled again after its process was killed.
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
"""Is told the bytes that have come and the bytes there are."""

Form = Literal[BackboneFormat, "all"]
"""What is pulled of a version: a format, or everything as its folder has it."""
ALL: Final = "all"
MARK: Final = ".rcmae-"
"""In the names of what lies beside a target while it is pulled: a lock, what has come so far, what is replaced."""


class DownloadError(ClientError):
    """What came is not what the service has."""


# --- one file ---------------------------------------------------------------------------------------------------------


def fetch_file(http: httpx.Client, path: str, out: Path, patience: Patience, progress: Progress | None) -> int:
    """One file as the new file ``out``; gives its bytes.

    Goes on where a connection broke. Raises `FileExistsError` where ``out`` exists, `DownloadError` for what does not
    have the size that the service says, and as `Patience.wait`.
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
        staging.chmod(0o644)  # mkstemp's files are for their owner alone
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
    """What follows the bytes that ``output`` has and stands after, until it has them all.

    With an ``etag`` it begins again where the service has another file by then; without, a file may only grow. Raises
    `DownloadError` for another size than the service says, and as `Patience.wait`.
    """
    while True:
        try:
            _go_on(http, path, output, patience, progress, etag)
        except (httpx.TransportError, ApiError) as error:
            patience.wait(error)
        else:
            return


def _go_on(
    http: httpx.Client, path: str, output: BinaryIO, patience: Patience, progress: Progress | None, etag: str | None
) -> None:
    """One connection's worth of it; returns when all has come."""
    headers = {"Accept-Encoding": "identity"}
    if output.tell():
        headers |= {"Range": f"bytes={output.tell()}-"} | ({"If-Range": etag} if etag else {})
    with _opened(http, path, headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and _size_of(response) == output.tell():
            return  # it broke off right at the end
        if response.is_error:
            response.read()
            raise ApiError.of(response)
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            output.seek(0)
            output.truncate()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {output.tell()}-"):
            raise DownloadError(f"{path}: asked for the bytes from {output.tell()} on, the service sent others")
        if "Content-Length" not in response.headers:
            raise DownloadError(f"{path}: the answer does not say its size; does a proxy change it on the way?")
        total = output.tell() + int(response.headers["Content-Length"])
        for piece in response.iter_bytes():
            output.write(piece)
            patience.renew()
            if progress:
                progress(output.tell(), total)
        if output.tell() != total:
            raise DownloadError(f"{path}: {output.tell()} bytes came, the service says {total}; nothing is kept")


@contextmanager
def _opened(http: httpx.Client, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """The answer to a GET, from where the service sends it on to if it does."""
    with http.stream("GET", path, headers=headers) as response:
        if not response.has_redirect_location:
            yield response
            return
        link = response.headers["Location"]
    # A signed link into the storage: our token stays here, and its ETags are others than ours.
    own = {name: value for name, value in headers.items() if name != "If-Range"}
    with httpx.Client(timeout=http.timeout) as elsewhere, elsewhere.stream("GET", link, headers=own) as response:
        yield response


def _size_of(response: httpx.Response) -> int | None:
    """Of the whole file, as a 416 tells it."""
    size = response.headers.get("Content-Range", "").removeprefix("bytes */")
    return int(size) if size.isdecimal() else None


# --- a folder ---------------------------------------------------------------------------------------------------------


class Fetcher:
    """Downloads the files of a version."""

    def __init__(self, http: httpx.Client, url: str, patience_s: float, progress: Progress | None) -> None:
        self._http, self._url, self._patience_s, self._progress = http, url, patience_s, progress
        self._before, self._total = 0, 0

    def folder(self, version: VersionView, form: Form, out: Path, force: bool = False) -> None:
        """One format of a version, or all of it, as the new folder ``out``; see `Client.pull` for the errors."""
        wanted = _wanted(version, form)
        out = Path(os.path.abspath(out))  # noqa: PTH100 - a link that stands there is to be seen as one
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            old = _beside(out, "old")
            if old.exists() and not out.exists():  # a process was killed between the two steps of replacing it
                old.rename(out)
            _check_target(out, force)
            staging = _beside(out, f"{hashlib.sha256(f'{version.commit} {form}'.encode()).hexdigest()[:16]}.partial")
            try:
                self._fill(version, wanted, staging)
            except DownloadError:  # it stays so; all else may pass, and what has come is kept for the next time
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _put(staging, out, old)
            of_others = f"{glob.escape(_beside(out, '').name)}*.partial"
            for other in out.parent.glob(of_others):  # of versions that never came
                shutil.rmtree(other, ignore_errors=True)

    def _fill(self, version: VersionView, wanted: dict[PurePosixPath, FileView], staging: Path) -> None:
        """Every file into ``staging``, those that it has already checked; nothing else stays in it."""
        self._before, self._total = 0, sum(file.size for file in wanted.values())
        staging.mkdir(exist_ok=True)
        for path, file in wanted.items():
            try:
                self._file(file, staging / path)
            except ApiError as error:
                if error.status != httpx.codes.NOT_FOUND:
                    raise
                what = f"{version.name}:{version.version}"
                text = f"{what} was deleted while it was pulled; nothing of it is kept ({error.detail})"
                raise DownloadError(text) from error
            self._before += file.size
        if PurePosixPath(SUMS) not in wanted:
            lines = [f"{file.sha256}  {path}\n" for path, file in wanted.items()]
            (staging / SUMS).write_text("".join(lines))
        expected = {staging / path for path in (*wanted, PurePosixPath(SUMS))}
        for left in staging.rglob("*"):
            if left.is_file() and left not in expected:
                left.unlink()

    def _file(self, file: FileView, target: Path) -> None:
        """One file; what is there of it already counts if it is right in the end, else all of it comes once more."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size and _sha256(target) == file.sha256:
            self._tell(file.size, file.size)
            return
        part = target.with_name(f"{target.name}.part")
        begun = part.exists()
        digest = self._bring(file, part)
        if digest != file.sha256 and begun:
            part.unlink()
            digest = self._bring(file, part)
        if digest != file.sha256:
            raise DownloadError(f"{file.path}: sha256 is {digest}, the registry's is {file.sha256}; nothing is kept")
        part.replace(target)

    def _bring(self, file: FileView, part: Path) -> str:
        """Its bytes into ``part``, after those that are there; gives their sha256."""
        with part.open("ab") as output:
            if output.tell() > file.size:
                output.truncate(0)
                output.seek(0)
            if output.tell() < file.size or not file.size:
                patience = Patience(self._patience_s, self._url)
                fetch(self._http, file.url, output, patience, self._tell, f'"{file.sha256}"')
            output.flush()
            os.fsync(output.fileno())
        return _sha256(part)

    def _tell(self, came: int, _: int) -> None:
        if self._progress:
            self._progress(self._before + came, self._total)


def _wanted(version: VersionView, form: Form) -> dict[PurePosixPath, FileView]:
    """Files by their places below the target; raises `DownloadError` for a format that is not there."""
    chosen = [file for file in version.files if form == ALL or file.path.startswith(f"{form}/")]
    if not chosen:
        there = sorted({file.path.partition("/")[0] for file in version.files if "/" in file.path})
        raise DownloadError(
            f"{version.name}:{version.version} has no format {form!r}; it has {', '.join(there) or 'no files'}"
        )
    return {_below(file, "" if form == ALL else form): file for file in chosen}


def _below(file: FileView, folder: str) -> PurePosixPath:
    """The file's place below the target; raises for a path that would lead out of it."""
    path = PurePosixPath(file.path)
    path = path.relative_to(folder) if folder else path
    # On Windows a backslash and a drive's colon lead elsewhere too.
    if ".." in path.parts or path.is_absolute() or not path.parts or set("\\:") & set(str(path)):
        raise DownloadError(f"the service names a file outside its folder: {file.path!r}")
    return path


def _check_target(out: Path, force: bool) -> None:
    """Raises `FileExistsError` where something stands there that is not to be replaced."""
    if not os.path.lexists(out):
        return
    if not force:
        raise FileExistsError(f"{out} exists: name a folder that does not, or replace it with --force")
    pulled = out.is_dir() and not out.is_symlink() and ((out / SUMS).is_file() or not any(out.iterdir()))
    if not pulled:
        raise FileExistsError(
            f"{out} is no folder that was pulled (there is no {SUMS} in it), and is not replaced: name another one"
        )


def _put(staging: Path, out: Path, old: Path) -> None:
    """Let ``staging`` be ``out``; what was there goes whole, and only then."""
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


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}{MARK}{what}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """While this process pulls into ``out``; raises `DownloadError` where another one does. Ends with the process."""
    path = _beside(out, "lock")
    while True:
        with path.open("ab") as lock:
            if not _locked(lock):
                raise DownloadError(f"another pull into {out} is under way (it holds {path}): wait for it, or end it")
            try:
                # Whoever held it before has removed it: then this is a lock that nobody else sees.
                if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                    continue
                yield
                return
            finally:
                if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    _remove(path)


def _locked(lock: BinaryIO) -> bool:
    """Whether the lock is ours now; raises `OSError` where this file system has none."""
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
    if sys.platform != "win32":  # there an open file cannot be removed: it stays, empty
        lock.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()

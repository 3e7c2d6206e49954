"""Files of a backbone's version into a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import httpx

from service.backbones.schemas import FileView, VersionView
from service.client.errors import ApiError, ClientError, patiently


class DownloadError(ClientError):
    """What came is not what the registry has."""


class Fetcher:
    """Downloads; ``progress`` is told the bytes that have come and the bytes there are."""

    def __init__(
        self, http: httpx.Client, url: str, patience_s: float, progress: Callable[[int, int], None] | None
    ) -> None:
        self._http, self._url, self._patience_s, self._progress = http, url, patience_s, progress
        self._before, self._total = 0, 0

    def folder(self, version: VersionView, folder: str, out: Path) -> None:
        """Everything below ``folder`` of a version as the new folder ``out``; see `Client.pull` for the errors."""
        wanted = [file for file in version.files if file.path.startswith(f"{folder}/")]
        if not wanted:
            there = sorted({file.path.partition("/")[0] for file in version.files if "/" in file.path})
            raise DownloadError(f"{version.name}:{version.version} has no format {folder!r}; it has {', '.join(there)}")
        if out.exists():
            raise FileExistsError(f"{out} exists: name a folder that does not, or remove it")
        out.parent.mkdir(parents=True, exist_ok=True)
        self._before, self._total = 0, sum(file.size for file in wanted)
        # Beside the target, so that the last step is one rename on one file system.
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            for file in wanted:
                self._file(file, staging / _below(file, folder))
                self._before += file.size
            staging.chmod(0o755)  # mkdtemp's folders are for their owner alone
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _file(self, file: FileView, target: Path) -> None:
        """One file; from its beginning again when the connection breaks."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = patiently(lambda: self._stream(file, target), self._patience_s, self._url)
        if digest != file.sha256:
            raise DownloadError(f"{file.path}: sha256 is {digest}, the registry's is {file.sha256}; nothing is kept")

    def _stream(self, file: FileView, target: Path) -> str:
        """Write one file; gives the sha256 of what was written."""
        digest, came = hashlib.sha256(), 0
        with self._http.stream("GET", file.url) as response, target.open("wb") as output:
            if response.is_error:
                response.read()
                raise ApiError.of(response)
            for piece in response.iter_bytes():
                output.write(piece)
                digest.update(piece)
                came += len(piece)
                if self._progress:
                    self._progress(self._before + came, self._total)
        return digest.hexdigest()


def _below(file: FileView, folder: str) -> PurePosixPath:
    """The file's place below the target; raises for a path that would lead out of it."""
    path = PurePosixPath(file.path).relative_to(folder)
    if ".." in path.parts or path.is_absolute():
        raise DownloadError(f"the service names a file outside its folder: {file.path!r}")
    return path

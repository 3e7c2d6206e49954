"""Files below one folder, local or remote, through fsspec."""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from trainer.errors import StorageError


class Store:
    """A folder by its URI or path. Paths given to its methods are relative to it, with forward slashes.

    Every method raises `StorageError` naming the place when the storage refuses or cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.fs, root = url_to_fs(uri)
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Where a file is, in the file system's own terms."""
        return posixpath.join(self.root, name) if name else self.root

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place whole: a reader sees the old one or the new one, never a part."""
        with self._told(name):
            if not self.is_local:
                self.fs.pipe_file(self.path(name), data)
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).chmod(0o644)
                    Path(file.name).replace(target)
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise

    def read(self, name: str) -> bytes:
        with self._told(name):
            data: bytes = self.fs.cat_file(self.path(name))
            return data

    def exists(self, name: str) -> bool:
        with self._told(name):
            return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """Names directly below a folder, sorted; none where it does not exist."""
        with self._told(folder):
            try:
                found = self.fs.ls(self.path(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
            return sorted(posixpath.basename(str(p).rstrip("/")) for p in found)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with everything below it; nothing happens where there is none."""
        with self._told(name):
            if self.fs.exists(self.path(name)):
                self.fs.rm(self.path(name), recursive=True)

    def upload(self, directory: Path, folder: str) -> None:
        """Copy a local directory's files to a folder."""
        with self._told(folder):
            self.fs.makedirs(self.path(folder), exist_ok=True)
            for file in sorted(directory.iterdir()):
                self.fs.put_file(str(file), self.path(f"{folder}/{file.name}"))

    @contextmanager
    def local_copy(self, folder: str) -> Iterator[Path]:
        """A local directory with a folder's files: the folder itself where it is local."""
        if self.is_local:
            yield Path(self.path(folder))
            return
        directory = Path(tempfile.mkdtemp(prefix="rcmae-"))
        try:
            with self._told(folder):
                for name in self.names(folder):
                    self.fs.get_file(self.path(f"{folder}/{name}"), str(directory / name))
            yield directory
        finally:
            shutil.rmtree(directory)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.uri.rstrip('/')}/{name}: {error}") from error

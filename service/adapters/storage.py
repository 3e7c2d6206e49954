"""Files of runs and backbones. Nothing outside the artifact root is ever read."""

from __future__ import annotations

import errno
from pathlib import Path, PurePosixPath


class OutsideRoot(Exception):
    """A folder that is not one of ours."""


class Artifacts:
    """The folder all runs' artifacts lie in."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def file(self, folder: str, name: str) -> Path | None:
        """A file below a run's or a version's folder; None where there is none.

        Raises `OutsideRoot` for a folder that is not below the root. Names that climb out, absolute ones and links
        that lead out of the folder are treated as files that do not exist.
        """
        base = self._folder(folder)
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part in {"..", "."} or "\x00" in part for part in parts):
            return None
        try:
            resolved = base.joinpath(*parts).resolve()
            return resolved if resolved.is_relative_to(base) and resolved.is_file() else None
        except RuntimeError:  # a link to itself
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise

    def read(self, folder: str, name: str) -> bytes | None:
        """A small file's bytes; None where there is none."""
        path = self.file(folder, name)
        return path.read_bytes() if path else None

    def names(self, folder: str, below: str = "") -> list[str]:
        """Names directly below a folder, sorted."""
        place = self._folder(folder) / below
        return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []

    def files(self, folder: str) -> list[tuple[str, int]]:
        """Every file below a folder with its size, by relative path."""
        base = self._folder(folder)
        found = (path for path in base.rglob("*") if path.is_file() and path.resolve().is_relative_to(base))
        return sorted((path.relative_to(base).as_posix(), path.stat().st_size) for path in found)

    def _folder(self, folder: str) -> Path:
        path = Path(folder.removeprefix("file://")).resolve()
        if not path.is_relative_to(self._root):
            raise OutsideRoot(f"{folder} is not below the artifact root")
        return path

"""The files that a version lists: which of them to pull, and whether their names can be written safely."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final, Literal

from service.backbones.schemas import FileView, VersionView
from service.client.errors import DownloadError
from trainer.spec.export import BackboneFormat

PullFormat = Literal[BackboneFormat, "all"]
"""What to pull of a version: one format, or everything, with a folder for each format."""
ALL: Final = "all"
PART: Final = ".part"
"""Suffix of a file that is not complete."""

MOST_FILES: Final = 10_000
LONGEST_NAME: Final = 250
"""Bytes of a file's or a folder's name: file systems allow 255, of which `PART` takes five."""
LONGEST_PATH: Final = 1000
"""Bytes."""
FORBIDDEN: Final = frozenset('\\:*?"<>|')
"""Characters that Windows forbids in names or that lead to other folders there."""
DEVICES: Final = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    | {f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"}
)
"""Names that Windows reserves, with any extension."""
URL_PATH: Final = re.compile(r"/(?!/)[!-~]*")
"""A path on the service itself; quoted, so that it is ASCII."""
SHA256: Final = re.compile(r"[0-9a-f]{64}")


def select_files(version: VersionView, form: PullFormat) -> dict[PurePosixPath, FileView]:
    """Files by their path in the target folder.

    Raises `DownloadError` for a format that the version lacks, and for a listing that cannot be pulled safely.
    """
    if len(version.files) > MOST_FILES:
        raise DownloadError(f"{version.name}:{version.version} lists more than {MOST_FILES} files")
    selected = [file for file in version.files if form == ALL or file.path.startswith(f"{form}/")]
    if not selected:
        formats = sorted({file.path.partition("/")[0] for file in version.files if "/" in file.path})
        raise DownloadError(
            f"{version.name}:{version.version} has no format {form!r}; it has {', '.join(formats) or 'no files'}"
        )
    for file in selected:
        problem = _problem(file)
        if problem:
            raise DownloadError(f"the service names a file {problem}: {file.path!r}; nothing is pulled")
    paths = {PurePosixPath(file.path.removeprefix("" if form == ALL else f"{form}/")): file for file in selected}
    if len(paths) != len(selected):
        raise DownloadError(f"{version.name}:{version.version} lists a file twice")
    must_differ(paths)
    return paths


def _problem(file: FileView) -> str | None:
    """Why a file must not be pulled; None where it may be."""
    problem = problem_of_path(file.path)
    if problem:
        return problem
    if not SHA256.fullmatch(file.sha256):
        return f"with the sha256 {file.sha256!r}"
    if file.size < 0:
        return f"of {file.size} bytes"
    if not URL_PATH.fullmatch(file.url):
        return f"whose url {file.url!r} is not a path on this server"
    return None


def problem_of_path(path: str) -> str | None:
    """Why no file of a downloaded folder may have a path; None where one may."""
    parts = path.split("/")
    if ".." in parts or path.startswith("/") or set("\\:") & set(path):
        return "outside its folder"
    if len(path.encode(errors="replace")) > LONGEST_PATH:
        return f"with a path of more than {LONGEST_PATH} bytes"
    return next((problem for part in parts if (problem := _problem_of_name(part))), None)


def _problem_of_name(name: str) -> str | None:
    """Why no file or folder may have a name."""
    if name in {"", "."}:
        return "with an empty part in its path"
    if any(unicodedata.category(character).startswith("C") for character in name):
        return "with a control character in its name"
    if FORBIDDEN & set(name) or name[-1] in ". ":
        return "with a name that Windows does not allow"
    if name.partition(".")[0].rstrip().upper() in DEVICES:
        return "with a name that Windows reserves"
    if len(name.encode()) > LONGEST_NAME:
        return f"with a name of more than {LONGEST_NAME} bytes"
    return None


def must_differ(paths: Iterable[PurePosixPath]) -> None:
    """Raises `DownloadError` for paths that are the same file somewhere, or a file and a folder."""
    seen: dict[str, PurePosixPath] = {}
    for path in paths:
        other = seen.setdefault(_folded(path), path)
        if other != path:
            raise DownloadError(f"the service names two files that differ in case alone: {str(other)!r}, {str(path)!r}")
    for path in paths:
        clashing = [*path.parents, path.with_name(f"{path.name}{PART}")]
        found = next((seen[name] for each in clashing if (name := _folded(each)) in seen), None)
        if found is not None:
            raise DownloadError(f"the service names two files that cannot both exist: {str(found)!r}, {str(path)!r}")


def _folded(path: PurePosixPath) -> str:
    """What file systems compare that ignore case, or how an accent is encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())

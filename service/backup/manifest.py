"""What a backup's folder holds: `manifest.json`, with a checksum for every other file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ValidationError

from service.client.errors import ClientError

FORMAT: Final = 1
"""Version of the layout of a backup."""
MANIFEST: Final = "manifest.json"
INDEX: Final = "artifacts.jsonl"
"""One line for each artifact, as `Artifact`."""
COPIES: Final = "artifacts"
"""The folder with the artifacts themselves, if they were copied."""
SECRETS: Final = "secrets"
PIECE: Final = 4 * 2**20

DatabaseName = Literal["rcmae", "studies", "mlflow"]
Progress = Callable[[int, int], None]
"""Takes the bytes done and all bytes."""


class BackupError(ClientError):
    """A backup cannot be made or restored; the text says why and what to do."""


class DatabaseCopy(BaseModel):
    """The copy of one database."""

    name: DatabaseName
    engine: Literal["sqlite", "postgres"]
    file: str
    """A SQLite file, or a dump of pg_dump's custom format."""
    revision: str | None
    """Of the schema."""
    taken_at: datetime
    """The copy holds all that was committed by then, and perhaps more."""


class Artifact(BaseModel):
    """One file below the artifact root."""

    name: str
    size: int
    sha256: str | None
    """None for a file in S3 that was not copied."""


class Manifest(BaseModel):
    """The content of `manifest.json`."""

    format: int
    rcmae: str
    """The version that made the backup."""
    created_at: datetime
    state_dir: str | None
    """The state folder it was made of; None for a deployment."""
    databases: list[DatabaseCopy]
    """In the order in which they were copied: what one refers to is in those after it, and its files in the index."""
    artifact_root: str
    artifacts: int
    artifact_bytes: int
    copied: bool
    """Whether the backup holds the artifacts themselves."""
    files: dict[str, str]
    """The sha256 of every other file of the backup, but for the artifacts, by its path."""


def file_sha256(path: Path, report: Callable[[int], None] = lambda _: None) -> str:
    """The digest of a file; ``report`` takes the size of each piece that was read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            report(len(piece))
    return digest.hexdigest()


def read_manifest(backup: Path) -> Manifest:
    """Raises `BackupError` for anything that is not a backup that this release can restore."""
    path = backup / MANIFEST
    try:
        text = path.read_text()
        version = json.loads(text)["format"]
        if version != FORMAT:
            raise BackupError(f"{path} has format {version}, and this release reads format {FORMAT}: use the release "
                              "that made the backup, or a later one")  # fmt: skip
        return Manifest.model_validate_json(text)
    except OSError as error:
        raise BackupError(f"{backup} is no backup: {path} cannot be read ({error.strerror})") from error
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{path} is damaged: {error}") from error


def index_of(backup: Path) -> Iterator[Artifact]:
    """The artifacts; raises `BackupError` for a name that leads out of the artifact root."""
    with (backup / INDEX).open() as lines:
        for line in lines:
            try:
                artifact = Artifact.model_validate_json(line)
            except ValidationError as error:
                raise BackupError(f"{backup / INDEX} is damaged: {error}") from error
            _require_inside(artifact.name)
            yield artifact


def verify(backup: Path, manifest: Manifest, progress: Progress) -> None:
    """Compare every file with its checksum; raises `BackupError` that names the first one that differs, that is a link,
    or that has no checksum.
    """
    done = 0

    def report(size: int) -> None:
        nonlocal done
        done += size
        progress(done, manifest.artifact_bytes if manifest.copied else done)

    links = [path for path in backup.rglob("*") if path.is_symlink()]
    if links:
        raise BackupError(f"the backup is damaged: {links[0]} is a link, which backups do not hold: use another backup")
    for name in (INDEX, *(copy.file for copy in manifest.databases)):
        if name not in manifest.files:
            raise BackupError(f"the backup is damaged: {MANIFEST} has no checksum of {name!r}: use another backup")
    known = {backup / MANIFEST}
    for name, sha256 in manifest.files.items():
        _require_inside(name)
        _compare(backup / name, sha256, lambda _: None)
        known.add(backup / name)
    for artifact in index_of(backup) if manifest.copied else ():
        _compare(backup / COPIES / artifact.name, artifact.sha256, report)
        known.add(backup / COPIES / artifact.name)
    for path in backup.rglob("*"):
        if not path.is_dir() and path not in known:
            raise BackupError(f"{path} is not of the backup, which has no checksum of it: remove it, or use another")


def _compare(path: Path, sha256: str | None, report: Callable[[int], None]) -> None:
    try:
        found = file_sha256(path, report)
    except OSError as error:
        raise BackupError(f"the backup is incomplete: {path} cannot be read ({error.strerror})") from error
    if found != sha256:
        raise BackupError(f"the backup is damaged: {path} has the sha256 {found}, not {sha256}: use another backup")


def _require_inside(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\x00" in name:
        raise BackupError(f"the backup is damaged: it names a file {name!r}, which leads out of it")

"""Makes backups while the service runs.

The control plane's database is copied first, then the trials', then MLflow's, and the artifacts are listed last. The
service makes a run before it refers to it, and writes files before it records them: whatever one copy refers to is in
those made after it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from service.adapters.storage import Artifacts, StorageUnreachable
from service.atomic import write_atomically
from service.backup.databases import copy_database
from service.backup.manifest import (
    COPIES,
    FORMAT,
    INDEX,
    MANIFEST,
    SECRETS,
    Artifact,
    BackupError,
    DatabaseName,
    Manifest,
    Progress,
    file_sha256,
)
from service.client.server import STATE_FILE
from service.embedded.folder import Folder
from service.embedded.parts import S3_PROFILE_VARIABLE
from service.settings import Settings


@dataclass(frozen=True)
class Source:
    """What is backed up."""

    databases: Mapping[DatabaseName, str]
    """Their URLs, in the order in which they are copied."""
    artifact_root: str
    s3_profile: str | None
    state_dir: Path | None = None
    secrets: Mapping[str, Path] = field(default_factory=dict)
    """Files, by their names in the backup."""

    @property
    def local_root(self) -> Path | None:
        """The folder of the artifacts; None if they are in S3."""
        return None if self.artifact_root.startswith("s3://") else Path(self.artifact_root.removeprefix("file://"))

    @classmethod
    def of_stack(cls, folder: Folder) -> Source:
        """Raises `BackupError` for a folder in which no stack was ever started."""
        if not (folder.path / STATE_FILE).exists():
            raise BackupError(f"{folder.path} is not the state folder of a stack: name it with --state-dir")
        return cls(
            {"rcmae": folder.database_url, "studies": folder.study_url, "mlflow": folder.mlflow_url},
            folder.artifact_root,
            os.environ.get(S3_PROFILE_VARIABLE),
            folder.path,
            # One of an earlier release may lack a credential, which `rcmae up` then makes.
            {path.name: path for path in (*folder.credentials, folder.path / STATE_FILE) if path.exists()},
        )

    @classmethod
    def of_deployment(cls, settings: Settings, mlflow_database: str) -> Source:
        """Its secrets are in files that the operator keeps (`.env`)."""
        studies: dict[DatabaseName, str] = {"studies": settings.study_url} if settings.study_url else {}
        databases: dict[DatabaseName, str] = {"rcmae": settings.database_url, **studies, "mlflow": mlflow_database}
        return cls(databases, settings.artifact_root, settings.s3_profile)


def make_backup(source: Source, target: Path, progress: Progress, *, copy_artifacts: bool) -> Manifest:
    """Write a backup to a folder that appears as a whole or not at all. Raises `BackupError`, `StorageUnreachable`."""
    target = target.expanduser().absolute()
    if target.exists() or target.is_symlink():
        raise BackupError(f"{target} exists: name a folder that does not, as with the date in its name")
    for copied in filter(None, (source.state_dir, source.local_root)):
        if target.resolve().is_relative_to(copied.resolve()):
            raise BackupError(f"{target} lies in {copied}, and would be lost with it: name a folder elsewhere")
    with _appearing(target) as folder:
        copies = [copy_database(name, url, folder) for name, url in source.databases.items()]
        (folder / SECRETS).mkdir(mode=0o700)
        for name, path in source.secrets.items():
            write_atomically(folder / SECRETS / name, path.read_bytes(), 0o600)
        count, size = _list_artifacts(source, folder, progress, copy_artifacts=copy_artifacts)
        hashed = [path for path in folder.rglob("*") if path.is_file() and path.parts[len(folder.parts)] != COPIES]
        manifest = Manifest(
            format=FORMAT,
            rcmae=version("rcmae"),
            created_at=datetime.now(UTC),
            state_dir=str(source.state_dir) if source.state_dir else None,
            databases=[copy for copy in copies if copy],
            artifact_root=source.artifact_root,
            artifacts=count,
            artifact_bytes=size,
            copied=copy_artifacts,
            files={str(path.relative_to(folder)): file_sha256(path) for path in sorted(hashed)},
        )
        write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode(), 0o600)
    return manifest


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A private folder beside the target, which gets the target's name at the end, or is removed on an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    before = os.umask(0o077)
    try:
        partial.mkdir(mode=0o700)
        yield partial
        os.sync()
        partial.rename(target)
    finally:
        os.umask(before)
        shutil.rmtree(partial, ignore_errors=True)


def _list_artifacts(source: Source, folder: Path, progress: Progress, *, copy_artifacts: bool) -> tuple[int, int]:
    """Write the index of all artifacts, and copy them if asked to; returns their number and bytes."""
    artifacts = Artifacts(source.artifact_root, source.s3_profile)
    remote = source.local_root is None
    exists = source.local_root is None or source.local_root.is_dir()
    listed = artifacts.files(artifacts.root) if exists else []  # before the first job there may be no folder yet
    everything, count, done = sum(size for _, size in listed), 0, 0
    with (folder / INDEX).open("w") as index:
        for name, listed_size in listed:
            size, sha256 = listed_size, None
            if copy_artifacts or not remote:
                read = _read(artifacts, name, folder / COPIES / name if copy_artifacts else None)
                if read is None:
                    continue  # a running job has removed it meanwhile, as it does with old checkpoints
                size, sha256 = read
            index.write(Artifact(name=name, size=size, sha256=sha256).model_dump_json() + "\n")
            count, done = count + 1, done + size
            progress(done, max(everything, done))
    return count, done


def _read(artifacts: Artifacts, name: str, copy: Path | None) -> tuple[int, str] | None:
    """The size and the digest of a file as it was read, which is written to ``copy``; None if it is gone."""
    try:
        file = artifacts.file(artifacts.root, name)
        if file is None:
            return None
        digest, size = hashlib.sha256(), 0
        if copy:
            copy.parent.mkdir(parents=True, exist_ok=True)
        with (copy or Path(os.devnull)).open("wb") as target:
            for piece in file.pieces(0, file.size):
                target.write(piece)
                digest.update(piece)
                size += len(piece)
    except StorageUnreachable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return size, digest.hexdigest()

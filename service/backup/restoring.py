"""Restores backups: into a state folder at any path, or into a deployment's databases."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from service.adapters.storage import Artifacts
from service.backup.databases import is_empty, require_known, restore_postgres, spare_versions
from service.backup.manifest import (
    COPIES,
    SECRETS,
    BackupError,
    DatabaseCopy,
    DatabaseName,
    Manifest,
    Progress,
    index_of,
    read_manifest,
    verify,
)
from service.client.server import STATE_FILE, Home
from service.embedded import stack
from service.embedded.folder import Folder, StackState


class Restored(NamedTuple):
    """What was done."""

    manifest: Manifest
    kept: Path | None
    """Where the state folder that was there lies now."""


def check_backup(backup: Path, progress: Progress) -> Manifest:
    """Verify a whole backup, and that this release knows its schemas; raises `BackupError`."""
    manifest = read_manifest(backup)
    for copy in manifest.databases:
        require_known(copy)
    verify(backup, manifest, progress)
    return manifest


def restore_stack(
    backup: Path,
    folder: Folder,
    progress: Progress,
    *,
    s3_profile: str | None = None,
    database_url: str | None = None,
    replace: bool = False,
    without_artifacts: bool = False,
) -> Restored:
    """Make a state folder of a verified backup. It appears as a whole; nothing of an existing folder is lost.

    ``database_url`` names the Postgres for the jobs, if not the recorded one. Artifacts that were not copied must be
    where they were, unless ``without_artifacts``. Raises `BackupError`.
    """
    manifest = check_backup(backup, progress)
    if manifest.state_dir is None:
        raise BackupError(f"{backup} was made of a deployment: restore it there, with --deployment")
    _require_free(folder, replace=replace)
    inside = Path(manifest.artifact_root).is_relative_to(folder.path) and not manifest.copied
    if not manifest.copied:
        _require_artifacts(backup, manifest, folder, s3_profile, without_artifacts=without_artifacts)
    partial = folder.path.with_name(f".{folder.path.name}.{secrets.token_hex(4)}")
    try:
        state = _fill(backup, manifest, partial, folder, database_url, replace=replace)
        kept = _set_aside(folder)
        partial.rename(folder.path)
        if kept and inside and (root := kept / Path(manifest.artifact_root).relative_to(folder.path)).exists():
            shutil.move(root, folder.path / root.relative_to(kept))
        folder.save(state.model_copy(update={"home": Home.of(folder.path)}))
        folder.close_to_others()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Restored(manifest, kept)


def restore_deployment(
    backup: Path,
    databases: Mapping[DatabaseName, str],
    artifact_root: str,
    s3_profile: str | None,
    progress: Progress,
    *,
    replace: bool = False,
    without_artifacts: bool = False,
) -> Restored:
    """Fill a deployment's databases, and its artifact root if the artifacts were copied. Raises `BackupError`."""
    manifest = check_backup(backup, progress)
    if manifest.artifact_root != artifact_root:
        raise BackupError(
            f"the backup's records name artifacts in {manifest.artifact_root}, and RCMAE_ARTIFACT_ROOT is "
            f"{artifact_root}: set it to the same"
        )
    for copy in manifest.databases:
        if copy.engine != "postgres" or copy.name not in databases:
            raise BackupError(f"the backup's database {copy.name} ({copy.engine}) is not one of this deployment's")
        if not replace and not is_empty(databases[copy.name]):
            raise BackupError(
                f"the deployment's database {copy.name} is not empty: stop what uses it, and add --replace to remove "
                "what it holds"
            )
    if manifest.copied:
        artifacts = Artifacts(artifact_root, s3_profile)
        for artifact in index_of(backup):
            artifacts.upload(backup / COPIES / artifact.name, artifact.name)
    else:
        _require_files(backup, artifact_root, s3_profile, without_artifacts=without_artifacts)
    for copy in manifest.databases:
        restore_postgres(backup / copy.file, databases[copy.name], replace=replace)
        _revive(copy, databases[copy.name])
    return Restored(manifest, None)


def _require_free(folder: Folder, *, replace: bool) -> None:
    if not folder.path.exists() or not any(folder.path.iterdir()):
        return
    if not replace:
        raise BackupError(
            f"{folder.path} is not empty: name another folder with --state-dir, or add --replace, which keeps what is "
            "there beside it"
        )
    if stack.is_supervised(folder) or any(part.alive for part in folder.load().parts.values()):
        raise BackupError(f"a stack runs in {folder.path}: run `rcmae down` first")


def _require_artifacts(
    backup: Path, manifest: Manifest, folder: Folder, s3_profile: str | None, *, without_artifacts: bool
) -> None:
    """Check that artifacts which were not copied are where they were, and that no other stack keeps them."""
    original = Folder(Path(str(manifest.state_dir)))
    same = folder.path.exists() and original.path.exists() and folder.path.samefile(original.path)
    if original.used and not same:
        raise BackupError(
            f"the stack in {original.path} still exists and keeps its artifacts in {manifest.artifact_root}, which two "
            "stacks cannot share: make the backup with --artifacts, or remove that stack first"
        )
    _require_files(backup, manifest.artifact_root, s3_profile, without_artifacts=without_artifacts)


def _require_files(backup: Path, root: str, s3_profile: str | None, *, without_artifacts: bool) -> None:
    """Compare the sizes of the files below an artifact root with the index."""
    there = root.startswith("s3://") or Path(root).is_dir()
    artifacts = Artifacts(root, s3_profile)
    sizes = dict(artifacts.files(artifacts.root)) if there else {}
    missing = [artifact.name for artifact in index_of(backup) if sizes.get(artifact.name) != artifact.size]
    if missing and not without_artifacts:
        raise BackupError(
            f"{len(missing)} artifacts that the backup names are not in {root} as they were, such as {missing[0]}: "
            "bring them back, make backups with --artifacts, or add --without-artifacts to do without them"
        )


def _fill(
    backup: Path, manifest: Manifest, partial: Path, folder: Folder, database_url: str | None, *, replace: bool
) -> StackState:
    """Make the state folder at ``partial``, which will be at ``folder``; returns its record."""
    recorded = StackState.model_validate_json((backup / SECRETS / STATE_FILE).read_text())
    partial.mkdir(parents=True, mode=0o700)
    for path in (backup / SECRETS).iterdir():
        if path.name != STATE_FILE:
            shutil.copyfile(path, partial / path.name)
    (partial / "stack.lock").touch(0o600)
    if manifest.copied and (backup / COPIES).is_dir():
        shutil.copytree(backup / COPIES, partial / COPIES)
    url = database_url or recorded.database_url
    for copy in manifest.databases:
        _restore(copy, backup / copy.file, partial, url, replace=replace)
    own = manifest.copied or manifest.artifact_root == str(folder.path / COPIES)
    return StackState(ports=recorded.ports, database_url=url, artifact_root=None if own else manifest.artifact_root)


def _restore(copy: DatabaseCopy, source: Path, partial: Path, url: str | None, *, replace: bool) -> None:
    if copy.engine == "sqlite":
        file = partial / f"{copy.name}.db"
        shutil.copyfile(source, file)
        url = f"sqlite:///{file}"
    elif url is None:
        raise BackupError("the jobs of this backup were in Postgres: name an empty database with --database-url")
    else:
        restore_postgres(source, url, replace=replace)
    _revive(copy, url)


def _revive(copy: DatabaseCopy, url: str) -> None:
    """Change what of a restored database is untrue by now: of ours, when retention rules delete versions."""
    if copy.name == "rcmae":
        spare_versions(url)


def _set_aside(folder: Folder) -> Path | None:
    """Rename what is at the state folder's path; returns where it lies now."""
    if not folder.path.exists():
        return None
    if not any(folder.path.iterdir()):
        folder.path.rmdir()
        return None
    return folder.path.rename(folder.path.with_name(f"{folder.path.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"))

"""What the backbones' routes do. A version is served only if its job is ours and its files lie below the artifact root:
whoever reaches MLflow could register anything.
"""

from __future__ import annotations

from urllib.parse import quote

from service.adapters.mlflow_store import MlflowUnreachable, Version
from service.adapters.storage import OutsideRoot, StoredFile
from service.backbones.schemas import BackboneView, FileView, VersionView
from service.deps import Parts
from service.errors import not_found, unavailable
from service.jobs import repository
from service.jobs.schemas import Page
from trainer.spec.names import BACKBONE_SUMS, TAG_JOB


def listing(parts: Parts) -> Page[BackboneView]:
    """Every backbone with its versions, by name."""
    by_name: dict[str, list[Version]] = {}
    for version in _ours(parts, _registered(parts, None)):
        by_name.setdefault(version.name, []).append(version)
    return Page[BackboneView](items=[_backbone(versions) for versions in by_name.values()])


def show(parts: Parts, name: str) -> BackboneView:
    found = _ours(parts, _registered(parts, name))
    if not found:
        raise not_found("backbone", name)
    return _backbone(found)


def show_version(parts: Parts, name: str, number: int) -> VersionView:
    version, folder = _version(parts, name, number)
    sums = _sums(parts, folder)
    sizes = dict(parts.artifacts.files(folder))
    return VersionView(
        name=name,
        version=number,
        created_at=version.created_at,
        job_id=version.tags[TAG_JOB],
        tags=dict(version.tags),
        files=[
            FileView(
                path=path,
                size=sizes[path],
                sha256=digest,
                url=f"/v1/backbones/{name}/versions/{number}/files/{quote(path)}",
            )
            for path, digest in sums.items()
            if path in sizes
        ],
    )


def file(parts: Parts, name: str, number: int, path: str) -> tuple[StoredFile, str]:
    """A version's file and its sha256; only files its checksums name are served."""
    _, folder = _version(parts, name, number)
    digest = _sums(parts, folder).get(path)
    found = parts.artifacts.file(folder, path) if digest else None
    if digest is None or found is None:
        raise not_found("file", path)
    return found, digest


def _registered(parts: Parts, name: str | None) -> list[Version]:
    try:
        return parts.mlflow.all_versions() if name is None else parts.mlflow.versions(name)
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error


def _ours(parts: Parts, versions: list[Version]) -> list[Version]:
    ids = [version.tags[TAG_JOB] for version in versions if TAG_JOB in version.tags]
    with parts.database.read() as session:
        known = repository.jobs_by_id(session, ids)
    return [
        version
        for version in versions
        if version.tags.get(TAG_JOB) in known and known[version.tags[TAG_JOB]].spec.get("register_as") == version.name
    ]


def _version(parts: Parts, name: str, number: int) -> tuple[Version, str]:
    version = next((v for v in _ours(parts, _registered(parts, name)) if v.version == number), None)
    try:
        folder = parts.mlflow.folder(version) if version else None
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error
    if version is None or folder is None:
        raise not_found("version", f"{name}:{number}")
    return version, folder


def _sums(parts: Parts, folder: str) -> dict[str, str]:
    """sha256 of each file a version consists of."""
    try:
        data = parts.artifacts.read(folder, BACKBONE_SUMS)
    except OutsideRoot as error:
        raise not_found("version", "(its files lie outside the artifact root)") from error
    lines = (data or b"").decode().splitlines()
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def _backbone(versions: list[Version]) -> BackboneView:
    newest = max(versions, key=lambda version: version.version)
    return BackboneView(
        name=newest.name,
        latest_version=newest.version,
        versions=[version.version for version in versions],
        updated_at=newest.created_at,
    )

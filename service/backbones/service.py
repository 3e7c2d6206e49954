"""Operations on backbones. `registry` decides which versions are served."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import structlog

from service.adapters.storage import StoredFile
from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.backbones import registry, repository
from service.backbones.archive import Archive
from service.backbones.registry import Served
from service.backbones.schemas import (
    CHAMPION,
    BackboneDetailView,
    BackboneView,
    FileView,
    VersionDeletionView,
    VersionView,
)
from service.context.app_state import AppState
from service.http.paging import bad_cursor, read_cursor, write_cursor
from service.http.problems import ApiProblem, not_found
from service.http.schemas import Page
from trainer.protocol import names
from trainer.spec.export import BackboneFormat

log = structlog.get_logger()

BY_TIME: Final = "updated_at"


@dataclass(frozen=True)
class Filters:
    """Filters of a list of backbones: a version must match all of them."""

    name_contains: str | None = None
    job: str | None = None
    """The job that registered it, or that trained it."""
    dataset: str | None = None
    """The dataset's fingerprint or URI."""
    method: str | None = None
    network: str | None = None
    export_format: str | None = None
    alias: str | None = None

    def match(self, version: Served, aliases: dict[str, int]) -> bool:
        """Whether a version matches; ``aliases`` are all aliases of its backbone."""
        tags = version.version.tags
        filters = [
            (self.name_contains and self.name_contains.lower(), version.name),
            (self.job, {version.job_id, version.trained_by}),
            (self.dataset, {tags.get(names.TAG_DATASET), version.dataset_uri}),
            (self.method, {tags.get(names.TAG_METHOD)}),
            (self.network, {tags.get(names.TAG_NETWORK)}),
            (self.export_format, set(version.formats)),
            (self.alias, {alias for alias, number in aliases.items() if number == version.number}),
        ]
        return all(value is None or value in values for value, values in filters)


def listing(state: AppState, filters: Filters, sort: str | None, limit: int, cursor: str | None) -> Page[BackboneView]:
    """One page of backbones with the versions that match.

    They are sorted by name, by time or by an evaluation result; those without the result come last.
    """
    by_name: dict[str, list[Served]] = {}
    for version in registry.served(state):
        by_name.setdefault(version.name, []).append(version)
    aliases = registry.all_aliases(state, by_name)
    matches = {
        name: [version for version in versions if filters.match(version, aliases[name])]
        for name, versions in by_name.items()
    }
    views = [
        registry.backbone(versions, registry.among(aliases[name], versions))
        for name, versions in matches.items()
        if versions
    ]
    keyed = sorted(((_sort_key(view, sort), view) for view in views), key=lambda pair: pair[0])
    if cursor:
        last = _read_sort_key(cursor, sort)
        keyed = [pair for pair in keyed if pair[0] > last]
    next_cursor = write_cursor([sort, *keyed[limit - 1][0]]) if len(keyed) > limit else None
    return Page[BackboneView](items=[view for _, view in keyed[:limit]], next_cursor=next_cursor)


SortKey = tuple[bool, float, str]
"""Whether the value to sort by is missing, the value (negated for descending order), and the name."""


def _sort_key(view: BackboneView, sort: str | None) -> SortKey:
    key = (sort or "").removeprefix("-")
    value = view.updated_at.timestamp() if key == BY_TIME else view.metrics.get(key) if key else 0.0
    sign = -1.0 if sort and sort.startswith("-") else 1.0
    return value is None, sign * (value or 0.0), view.name


def _read_sort_key(cursor: str, sort: str | None) -> SortKey:
    match read_cursor(cursor):
        case [cursor_sort, bool(missing), float(value) | int(value), str(name)] if cursor_sort == sort:
            return missing, float(value), name
    raise bad_cursor(cursor)


def show(state: AppState, name: str) -> BackboneDetailView:
    """One backbone with all its versions, newest first. Raises the API's 404."""
    versions = registry.served(state, name)
    if not versions:
        raise not_found("backbone", name)
    aliases = registry.aliases_of(state, versions)
    details = [version.summary(aliases) for version in reversed(versions)]
    return BackboneDetailView(**vars(registry.backbone(versions, aliases)), details=details)


def show_version(state: AppState, name: str, reference: str) -> VersionView:
    """One version with its files. Raises the API's 404."""
    version = registry.find(state, name, reference)
    content, sizes = registry.content(state, version), dict(state.artifacts.files(version.folder))
    summary = version.summary(registry.aliases_of(state, [version]))
    listed = {path: digest for path, digest in content.listed.items() if path in sizes}
    return VersionView(
        **vars(summary) | {"formats": registry.formats_in(listed)},
        commit=content.commit,
        files=[
            FileView(
                path=path,
                size=sizes[path],
                sha256=digest,
                url=f"/v1/backbones/{name}/versions/{version.number}/files/{quote(path)}",
            )
            for path, digest in listed.items()
        ],
    )


def file(state: AppState, name: str, reference: str, path: str) -> tuple[StoredFile, str]:
    """A version's file and its sha256. Raises the API's 404, also for files without a checksum."""
    version = registry.find(state, name, reference)
    listed = registry.content(state, version).listed
    return registry.stored(state, version, path, listed), listed[path]


def link(state: AppState, file: StoredFile) -> str | None:
    """A signed link to a file; None if the settings do not ask for links, or the storage has none."""
    settings = state.settings
    return state.artifacts.link(file, settings.presigned_s) if settings.presigned_downloads else None


def archive(
    state: AppState, name: str, reference: str, export_format: BackboneFormat | None
) -> tuple[Archive, str, str]:
    """A version's files as a tar, with the tar's file name and a hash that identifies it.

    With a format, the tar has that format, the card and the checksums. Raises the API's 404.
    """
    version = registry.find(state, name, reference)
    content = registry.content(state, version)
    formats = registry.formats_in(content.listed)
    if export_format and export_format not in formats:
        available = f"it has {', '.join(formats)}" if formats else "it has none"
        text = f"{name}:{version.number} has no format {export_format!r}; {available}"
        raise ApiProblem(404, "format_not_found", text)
    paths = [path for path in content.listed if export_format is None or _comes_with(export_format, path)]
    top = f"{name}-v{version.number}"
    members = [(f"{top}/{path}", registry.stored(state, version, path, content.listed)) for path in sorted(paths)]
    tar = Archive(members, version.version.created_at)
    identity = hashlib.sha256(f"{content.commit} {top} {export_format} {tar.size}".encode()).hexdigest()
    return tar, f"{top}-{export_format}.tar" if export_format else f"{top}.tar", identity


def _comes_with(export_format: BackboneFormat, path: str) -> bool:
    return path.startswith(f"{export_format}/") or path == names.BACKBONE_SUMS or registry.belongs_to_card(path)


# --- changes ----------------------------------------------------------------------------------------------------------


def set_alias(state: AppState, caller: Caller, name: str, alias: str, number: int) -> BackboneDetailView:
    """Point an alias at a version. Raises 403 if that version, or the previous one, is somebody else's, and 404."""
    _check_alias(alias)
    versions = _versions(state, name)
    target = versions.get(number)
    if target is None:
        raise not_found("version", f"{name}:{number}")
    previous = versions.get(registry.aliases_of(state, list(versions.values())).get(alias, 0))
    for version in filter(None, (target, previous)):
        caller.must(Scope.BACKBONES, version.owner)
    with registry.asking_mlflow():
        state.mlflow.set_alias(name, alias, number)
    if number not in _versions(state, name):  # somebody deleted it meanwhile, before the alias was visible
        with registry.asking_mlflow():
            state.mlflow.delete_alias(name, alias)
        raise not_found("version", f"{name}:{number}")
    with state.database.session() as session:
        caller.record(session, name, alias=alias, version=number, before=previous.number if previous else None)
    return show(state, name)


def delete_alias(state: AppState, caller: Caller, name: str, alias: str) -> BackboneDetailView:
    """Remove an alias; its version stays. Raises the API's 403 and 404."""
    versions = _versions(state, name)
    number = registry.aliases_of(state, list(versions.values())).get(alias)
    if number is None:
        raise not_found("alias", f"{name}@{alias}")
    caller.must(Scope.BACKBONES, versions[number].owner)
    with registry.asking_mlflow():
        state.mlflow.delete_alias(name, alias)
    with state.database.session() as session:
        caller.record(session, name, alias=alias, version=number)
    return show(state, name)


def deletion(state: AppState, caller: Caller, name: str, number: int) -> VersionDeletionView:
    """What the deletion of a version would remove. Raises the API's 403 and 404."""
    return _deletion(state, caller, registry.find(state, name, str(number)))


def delete_version(state: AppState, caller: Caller, name: str, number: int) -> VersionDeletionView:
    """Hide a version at once; the controller removes it later. Raises 403 and 404, and 409 if it has an alias.

    If the version gets an alias in the meantime, the controller keeps it and shows it again.
    """
    version = registry.find(state, name, str(number))
    preview = _deletion(state, caller, version)
    _must_have_no_alias(version, preview.aliases)
    with state.database.session() as session:
        repository.hide(session, name, number, version.job_id, version.version.source, version.folder)
        caller.record(session, name, version=number, job=version.job_id)
    log.info("version_deleted", backbone=name, version=number, job_id=version.job_id, actor=caller.owner)
    state.wake.set()
    return preview


def _deletion(state: AppState, caller: Caller, version: Served) -> VersionDeletionView:
    caller.must(Scope.BACKBONES, version.owner)
    files = state.artifacts.files(version.folder)
    return VersionDeletionView(
        name=version.name,
        version=version.number,
        job_id=version.job_id,
        artifact_uri=version.folder,
        files=len(files),
        bytes=sum(size for _, size in files),
        aliases=sorted(alias for alias, to in _aliases(state, version.name).items() if to == version.number),
    )


def _must_have_no_alias(version: Served, aliases: list[str]) -> None:
    if aliases:
        name, first = version.name, aliases[0]
        text = (
            f"{name}:{version.number} has the alias {name}@{', @'.join(aliases)}: move it to another version, "
            f"or remove it, first: DELETE /v1/backbones/{name}/aliases/{first}"
        )
        raise ApiProblem(409, "version_has_alias", text)


def _aliases(state: AppState, name: str) -> dict[str, int]:
    with registry.asking_mlflow():
        return state.mlflow.aliases(name)


def _versions(state: AppState, name: str) -> dict[int, Served]:
    """A backbone's versions by number. Raises the API's 404 if there are none."""
    versions = registry.served(state, name)
    if not versions:
        raise not_found("backbone", name)
    return {version.number: version for version in versions}


def _check_alias(alias: str) -> None:
    """Raises the API's 422 for an alias that is malformed or has another meaning."""
    if not registry.ALIAS.fullmatch(alias) or registry.RESERVED.fullmatch(alias):
        text = (
            f"alias: {alias!r} is invalid: use a lower-case letter followed by at most 62 lower-case letters, digits, "
            f"_ or -, for example {CHAMPION}; main, latest, v and a number, and 40 hexadecimal digits are reserved"
        )
        raise ApiProblem(422, "parameter_invalid", text)

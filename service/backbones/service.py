"""What the backbones' routes do; which versions are served is `registry`'s."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import structlog

from service.adapters.storage import StoredFile
from service.auth.caller import Caller
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
    """What a list of backbones is narrowed to: those with a version that fits all of it."""

    name_contains: str | None = None
    job: str | None = None
    """That registered it, or that trained it."""
    dataset: str | None = None
    """Its fingerprint or its URI."""
    method: str | None = None
    network: str | None = None
    form: str | None = None
    alias: str | None = None

    def fits(self, version: Served, aliases: dict[str, int]) -> bool:
        tags = version.version.tags
        wanted = [
            (self.name_contains and self.name_contains.lower(), version.name),
            (self.job, {version.job_id, version.trained_by}),
            (self.dataset, {tags.get(names.TAG_DATASET), version.dataset_uri}),
            (self.method, {tags.get(names.TAG_METHOD)}),
            (self.network, {tags.get(names.TAG_NETWORK)}),
            (self.form, set(version.formats)),
            (self.alias, {alias for alias, number in aliases.items() if number == version.number}),
        ]
        return all(value is None or value in found for value, found in wanted)


def listing(state: AppState, filters: Filters, sort: str | None, limit: int, cursor: str | None) -> Page[BackboneView]:
    """Backbones with the versions that fit, by name, by time or by a result of evaluation; those without it last."""
    by_name: dict[str, list[Served]] = {}
    for version in registry.served(state):
        by_name.setdefault(version.name, []).append(version)
    aliases = registry.all_aliases(state, by_name)
    fitting = {
        name: [version for version in versions if filters.fits(version, aliases[name])]
        for name, versions in by_name.items()
    }
    views = [
        registry.backbone(versions, _of(aliases[name], versions)) for name, versions in fitting.items() if versions
    ]
    placed = sorted(((_place(view, sort), view) for view in views), key=lambda each: each[0])
    if cursor:
        last = _read_place(cursor, sort)
        placed = [each for each in placed if each[0] > last]
    following = write_cursor([sort, *placed[limit - 1][0]]) if len(placed) > limit else None
    return Page[BackboneView](items=[view for _, view in placed[:limit]], next_cursor=following)


Place = tuple[bool, float, str]
"""Where a backbone stands in a list: those without what it is sorted by last, then by that, then by name."""


def _place(view: BackboneView, sort: str | None) -> Place:
    key = (sort or "").removeprefix("-")
    value = view.updated_at.timestamp() if key == BY_TIME else view.metrics.get(key) if key else 0.0
    sign = -1.0 if sort and sort.startswith("-") else 1.0
    return value is None, sign * (value or 0.0), view.name


def _read_place(cursor: str, sort: str | None) -> Place:
    match read_cursor(cursor):
        case [before, bool(missing), float(value) | int(value), str(name)] if before == sort:
            return missing, float(value), name
    raise bad_cursor(cursor)


def _of(aliases: dict[str, int], versions: list[Served]) -> dict[str, int]:
    numbers = {version.number for version in versions}
    return {alias: number for alias, number in aliases.items() if number in numbers}


def show(state: AppState, name: str) -> BackboneDetailView:
    """One backbone with all of its versions, the newest first."""
    versions = registry.served(state, name)
    if not versions:
        raise not_found("backbone", name)
    aliases = registry.aliases_of(state, versions)
    details = [version.summary(aliases) for version in reversed(versions)]
    return BackboneDetailView(**vars(registry.backbone(versions, aliases)), details=details)


def show_version(state: AppState, name: str, reference: str) -> VersionView:
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
    """A version's file and its sha256; only its checksums and files that they name are served."""
    version = registry.find(state, name, reference)
    listed = registry.content(state, version).listed
    return registry.stored(state, version, path, listed), listed[path]


def link(state: AppState, found: StoredFile) -> str | None:
    """Where the file can be had without this service, if that is wanted and can be."""
    settings = state.settings
    return state.artifacts.link(found, settings.presigned_s) if settings.presigned_downloads else None


def archive(state: AppState, name: str, reference: str, form: BackboneFormat | None) -> tuple[Archive, str, str]:
    """All of a version, or one format with the card and the checksums, as a tar; its name, and what it is known by."""
    version = registry.find(state, name, reference)
    content = registry.content(state, version)
    formats = registry.formats_in(content.listed)
    if form and form not in formats:
        there = f"it has {', '.join(formats)}" if formats else "it has none"
        raise ApiProblem(404, "format_not_found", f"{name}:{version.number} has no format {form!r}; {there}")
    wanted = [path for path in content.listed if form is None or _comes_with(form, path)]
    top = f"{name}-v{version.number}"
    members = [(f"{top}/{path}", registry.stored(state, version, path, content.listed)) for path in sorted(wanted)]
    made = Archive(members, version.version.created_at)
    identity = hashlib.sha256(f"{content.commit} {top} {form} {made.size}".encode()).hexdigest()
    return made, f"{top}-{form}.tar" if form else f"{top}.tar", identity


def _comes_with(form: BackboneFormat, path: str) -> bool:
    return path.startswith(f"{form}/") or path == names.BACKBONE_SUMS or registry.of_the_card(path)


# --- changes ----------------------------------------------------------------------------------------------------------


def set_alias(state: AppState, caller: Caller, name: str, alias: str, number: int) -> BackboneDetailView:
    """Let an alias stand for a version; raises 403 where either that or what it stood for is somebody else's."""
    _check_alias(alias)
    versions = _versions(state, name)
    wanted = versions.get(number)
    if wanted is None:
        raise not_found("version", f"{name}:{number}")
    before = versions.get(registry.aliases_of(state, list(versions.values())).get(alias, 0))
    for version in filter(None, (wanted, before)):
        caller.must_control(version.owner)
    with registry.asking_mlflow():
        state.mlflow.set_alias(name, alias, number)
    if number not in _versions(state, name):  # somebody deleted it meanwhile, and did not see the alias
        with registry.asking_mlflow():
            state.mlflow.delete_alias(name, alias)
        raise not_found("version", f"{name}:{number}")
    with state.database.session() as session:
        caller.record(session, name, alias=alias, version=number, before=before.number if before else None)
    return show(state, name)


def delete_alias(state: AppState, caller: Caller, name: str, alias: str) -> BackboneDetailView:
    """The versions stay as they are."""
    versions = _versions(state, name)
    number = registry.aliases_of(state, list(versions.values())).get(alias)
    if number is None:
        raise not_found("alias", f"{name}@{alias}")
    caller.must_control(versions[number].owner)
    with registry.asking_mlflow():
        state.mlflow.delete_alias(name, alias)
    with state.database.session() as session:
        caller.record(session, name, alias=alias, version=number)
    return show(state, name)


def deletion(state: AppState, caller: Caller, name: str, number: int) -> VersionDeletionView:
    """What would go with a version."""
    return _deletion(state, caller, registry.find(state, name, str(number)))


def delete_version(state: AppState, caller: Caller, name: str, number: int) -> VersionDeletionView:
    """Hide a version at once, for the controller to remove; raises 409 while an alias stands for it.

    One that gets an alias in that very moment is kept by the controller, and is there again.
    """
    version = registry.find(state, name, str(number))
    going = _deletion(state, caller, version)
    _must_have_no_alias(version, going.aliases)
    with state.database.session() as session:
        repository.hide(session, name, number, version.job_id, version.version.source, version.folder)
        caller.record(session, name, version=number, job=version.job_id)
    log.info("version_deleted", backbone=name, version=number, job_id=version.job_id, actor=caller.owner)
    state.wake.set()
    return going


def _deletion(state: AppState, caller: Caller, version: Served) -> VersionDeletionView:
    caller.must_control(version.owner)
    files = state.artifacts.files(version.folder)
    return VersionDeletionView(
        name=version.name,
        version=version.number,
        job_id=version.job_id,
        artifact_uri=version.folder,
        files=len(files),
        bytes=sum(size for _, size in files),
        aliases=sorted(alias for alias, of in _aliases(state, version.name).items() if of == version.number),
    )


def _must_have_no_alias(version: Served, aliases: list[str]) -> None:
    if aliases:
        name, first = version.name, aliases[0]
        text = (
            f"{name}:{version.number} is {name}@{', @'.join(aliases)}: let that stand for another version, "
            f"or remove it, first: DELETE /v1/backbones/{name}/aliases/{first}"
        )
        raise ApiProblem(409, "version_has_alias", text)


def _aliases(state: AppState, name: str) -> dict[str, int]:
    with registry.asking_mlflow():
        return state.mlflow.aliases(name)


def _versions(state: AppState, name: str) -> dict[int, Served]:
    """By number; raises the API's 404 where there is none."""
    found = registry.served(state, name)
    if not found:
        raise not_found("backbone", name)
    return {version.number: version for version in found}


def _check_alias(alias: str) -> None:
    """Raises the API's 422 for an alias that would be taken for something else."""
    if not registry.ALIAS.fullmatch(alias) or registry.RESERVED.fullmatch(alias):
        text = (
            f"alias: {alias!r} cannot be one: use a lower-case letter and then at most 62 lower-case letters, digits, "
            f"_ or -, for example {CHAMPION}; main, latest, v1 and the like and 40 hexadecimal digits mean other things"
        )
        raise ApiProblem(422, "parameter_invalid", text)

"""Operations on backbones. `registry` decides which versions are served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from urllib.parse import quote

import structlog
from sqlalchemy.orm import Session

from service.adapters.mlflow_connection import MlflowUnreachable
from service.adapters.storage import StoredFile
from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.auth.sight import seen
from service.backbones import approval, copies, registry, signing, use
from service.backbones.approval_schemas import ChampionRuleView
from service.backbones.archive import Archive
from service.backbones.filters import Filters
from service.backbones.registry import Backbone, Served
from service.backbones.schemas import (
    CHAMPION,
    BackboneDetailView,
    BackboneView,
    FileView,
    FineTunedView,
    VersionDeletionView,
    VersionView,
)
from service.backbones.signature_schemas import SIGNATURE_FILE
from service.backbones.sorting import VALUES
from service.backbones.use_schemas import VersionUserView
from service.context.app_state import AppState
from service.db.tables import BackboneAlias, BackboneVersion, RegisteredBackbone
from service.http.paging import bad_cursor, read_cursor, read_value, write_cursor
from service.http.problems import ApiProblem, not_found
from service.http.ranges import ByteSource
from service.http.schemas import Page
from service.jobs import aliases, evaluations, needed, versions
from trainer.protocol import names
from trainer.spec.export import BackboneFormat

log = structlog.get_logger()


def listing(
    state: AppState, caller: Caller, filters: Filters, sort: str | None, limit: int, cursor: str | None
) -> Page[BackboneView]:
    """One page of the backbones that a caller sees, with the versions that match.

    They are sorted by name, by one of `sorting.VALUES` or by an evaluation result; those without it come last. Raises
    the API's 422 for a filter by a metric that no version has.
    """
    last = _read_sort_key(cursor, sort) if cursor else None
    if sort is None:  # they are read by name, so no more of them than the page needs
        after = last[2] if last else ""
        views = list(islice(_matches(state, caller, filters, after, limit + 1), limit + 1))
        keyed = [(_sort_key(view, sort), view) for view in views]
    else:
        found = _matches(state, caller, filters, "", registry.MOST_AT_ONCE)
        keyed = sorted(((_sort_key(view, sort), view) for view in found), key=lambda pair: pair[0])
        keyed = [pair for pair in keyed if last is None or pair[0] > last]
    if not keyed:
        filters.check_metrics(state, caller)
    next_cursor = write_cursor([sort, *keyed[limit - 1][0]]) if len(keyed) > limit else None
    return Page[BackboneView](items=[view for _, view in keyed[:limit]], next_cursor=next_cursor)


def _matches(state: AppState, caller: Caller, filters: Filters, after: str, at_first: int) -> Iterator[BackboneView]:
    """The backbones after a name with the versions that match, by name."""
    contains = filters.name_contains or ""
    for backbone in registry.backbones(state, caller, contains, after, at_first, filters.conditions()):
        matches = [version for version in backbone.versions if filters.match(version, backbone)]
        if matches:
            yield backbone.only(matches).view()


SortKey = tuple[bool, float, str]
"""Whether the value to sort by is missing, the value (negated for descending order), and the name."""


def _sort_key(view: BackboneView, sort: str | None) -> SortKey:
    key = (sort or "").removeprefix("-")
    value = VALUES[key](view) if key in VALUES else view.metrics.get(key) if key else 0.0
    sign = -1.0 if sort and sort.startswith("-") else 1.0
    return value is None, sign * (value or 0.0), view.name


def _read_sort_key(cursor: str, sort: str | None) -> SortKey:
    match read_cursor(cursor):
        case [cursor_sort, bool(missing), float(value) | int(value), str(name)] if cursor_sort == sort:
            if name.isascii() and name.isprintable():  # as all names are; a database takes no other text
                return missing, read_value(value, cursor), name
    raise bad_cursor(cursor)


def show(state: AppState, caller: Caller, name: str) -> BackboneDetailView:
    """One backbone with all its versions, newest first. Raises the API's 404."""
    return detail(state, caller, registry.backbone(state, caller, name))


def detail(state: AppState, caller: Caller, backbone: Backbone) -> BackboneDetailView:
    """A backbone with all its versions, newest first, and the classifiers that the caller sees."""
    with state.database.query() as session:
        rows = versions.fine_tuned_from(session, backbone.name, seen(caller))
        classifiers = [
            FineTunedView(name=row.name, version=row.version, fine_tuned_from=row.tags[names.TAG_FINE_TUNED_FROM])
            for row in rows
        ]
    details = [version.summary(backbone.aliases) for version in reversed(backbone.versions)]
    rule = approval.rule_in(backbone.row)
    return BackboneDetailView(**vars(backbone.view()), details=details, classifiers=classifiers, champion_rule=rule)


def show_version(state: AppState, caller: Caller, name: str, reference: str) -> VersionView:
    """One version with its files. Raises the API's 404 and 410."""
    return describe(state, registry.find_ready(state, caller, name, reference))


def describe(state: AppState, version: Served) -> VersionView:
    """A version with its files, of which it has none if it is gone."""
    with state.database.read() as session:
        named = aliases.of_backbones(session, [version.name]).get(version.name, {})
        signature = signing.stored(session, version)
        results = evaluations.of_version(session, version.name, version.number)
    summary = version.summary(named)
    if version.gone:
        return VersionView(**vars(summary), evaluations=results, files=[])
    content, sizes = registry.content(state, version), dict(state.artifacts.files(version.folder))
    listed = {path: digest for path, digest in content.listed.items() if path in sizes}
    return VersionView(
        **vars(summary) | {"formats": registry.formats_in(listed)},
        commit=content.commit,
        evaluations=results,
        files=[
            FileView(
                path=path,
                size=sizes[path],
                sha256=digest,
                url=f"/v1/backbones/{version.name}/versions/{version.number}/files/{quote(path)}",
            )
            for path, digest in listed.items()
        ]
        + ([signature.file()] if signature else []),
        signature=signature.view(content) if signature else None,
    )


def file(state: AppState, caller: Caller, name: str, reference: str, path: str) -> tuple[StoredFile, str]:
    """A version's file and its sha256. Raises the API's 404, also for files without a checksum, and 410."""
    version = registry.find_ready(state, caller, name, reference)
    listed = registry.content(state, version).listed
    use.note_file(caller, version, path)
    return registry.stored(state, version, path, listed), listed[path]


def link(state: AppState, file: StoredFile) -> str | None:
    """A signed link to a file; None if the settings do not ask for links, or the storage has none."""
    settings = state.settings
    return state.artifacts.link(file, settings.presigned_s) if settings.presigned_downloads else None


def archive(
    state: AppState, caller: Caller, name: str, reference: str, export_format: BackboneFormat | None
) -> tuple[Archive, str, str]:
    """A version's files as a tar, with the tar's file name and a hash that identifies it.

    With a format, the tar has that format, the card and the checksums; each has the signature of a version that is
    signed. Raises the API's 404 and 410.
    """
    version = registry.find_ready(state, caller, name, reference)
    content = registry.content(state, version)
    formats = registry.formats_in(content.listed)
    if export_format and export_format not in formats:
        available = f"it has {', '.join(formats)}" if formats else "it has none"
        text = f"{name}:{version.number} has no format {export_format!r}; {available}"
        raise ApiProblem(404, "format_not_found", text)
    paths = [path for path in content.listed if export_format is None or _comes_with(export_format, path)]
    top = f"{name}-v{version.number}"
    members: list[tuple[str, ByteSource]] = [
        (f"{top}/{path}", registry.stored(state, version, path, content.listed)) for path in sorted(paths)
    ]
    with state.database.read() as session:
        signature = signing.stored(session, version)
    if signature:
        members.append((f"{top}/{SIGNATURE_FILE}", signature))
    use.note(caller, version, export_format or "")
    tar = Archive(members, version.row.created_at)
    parts = f"{content.commit} {top} {export_format} {tar.size} {signature.sha256 if signature else ''}"
    identity = hashlib.sha256(parts.encode()).hexdigest()
    return tar, f"{top}-{export_format}.tar" if export_format else f"{top}.tar", identity


def users(state: AppState, caller: Caller, name: str, reference: str) -> list[VersionUserView]:
    """Who has used a version, whoever did last first. Raises the API's 404, and 403 for who may not delete it."""
    version = registry.find(state, caller, name, reference)
    with state.database.read() as session:
        caller.must(Scope.BACKBONES, *owners(session, version.row))
        return use.users(session, version.row)


def _comes_with(export_format: BackboneFormat, path: str) -> bool:
    return path.startswith(f"{export_format}/") or path == names.BACKBONE_SUMS or registry.belongs_to_card(path)


# --- changes ----------------------------------------------------------------------------------------------------------


def set_alias(
    state: AppState, caller: Caller, name: str, alias: str, number: int, reason: str = ""
) -> BackboneDetailView:
    """Point an alias at a version.

    Raises 403 if that version, or the previous one, is somebody else's, or the champion's rule names others, 404 if
    there is no such version or it is being deleted, 409 if it does not meet the rule, and 410 if it is gone.
    """
    _check_alias(alias)
    backbone = registry.backbone(state, caller, name)
    known = backbone.numbered(number)
    if known is None:
        raise not_found("version", f"{name}:{number}")
    sums = approval.sums_sha256(state, backbone.row, known) if alias == CHAMPION else None
    with state.database.session() as session:
        target = shown_now(session, known)
        before = session.get(BackboneAlias, (name, alias))
        previous = session.get(BackboneVersion, (name, before.version)) if before else None
        rule = approval.rule_of(session, name) if alias == CHAMPION else None
        must_own(session, caller, rule, target.row, previous)
        if target.gone:
            raise ApiProblem(410, "version_gone", registry.gone_text(target))
        if rule:
            approval.must_allow(session, rule, caller, target, previous, reason, sums)
        said = {"reason": reason} if reason else {}
        caller.record(session, name, alias=alias, version=number, before=previous.version if previous else None, **said)
        aliases.point(session, target.row, alias, caller.owner, token_id=caller.token_id, reason=reason)
    _follow_in_mlflow(state, name, alias)
    return show(state, caller, name)


def must_own(
    session: Session,
    caller: Caller,
    rule: ChampionRuleView | None,
    target: BackboneVersion,
    previous: BackboneVersion | None,
) -> None:
    """Raises the API's 403 unless the caller may move an alias from one version to another.

    A rule that names approvers has this from them alone, whoever owns the versions.
    """
    if rule is None or not rule.approvers:
        for row in filter(None, (target, previous)):
            caller.must(Scope.BACKBONES, *owners(session, row))


def delete_alias(state: AppState, caller: Caller, name: str, alias: str, reason: str = "") -> BackboneDetailView:
    """Remove an alias; its version stays. Raises 403, 404, and 409 for a champion that a rule protects."""
    backbone = registry.backbone(state, caller, name)
    with state.database.session() as session:
        row = session.get(BackboneAlias, (name, alias))
        version = backbone.numbered(row.version) if row else None
        if row is None or version is None:
            raise not_found("alias", f"{name}@{alias}")
        caller.must(Scope.BACKBONES, *owners(session, version.row))
        if alias == CHAMPION:
            approval.must_have_no_rule(session, name)
        aliases.unpoint(session, row, caller.owner, token_id=caller.token_id, reason=reason)
        caller.record(session, name, alias=alias, version=row.version, **({"reason": reason} if reason else {}))
    _follow_in_mlflow(state, name, alias)
    return show(state, caller, name)


def _follow_in_mlflow(state: AppState, name: str, alias: str) -> None:
    """Copy a changed alias to MLflow; if that fails, the controller's next comparison with MLflow does it."""
    try:
        copies.follow(state, name, alias)
    except MlflowUnreachable as error:
        log.warning("alias_not_followed", backbone=name, alias=alias, detail=str(error))


def deletion(state: AppState, caller: Caller, name: str, number: int) -> VersionDeletionView:
    """What the deletion of a version would remove. Raises the API's 403 and 404."""
    return _deletion(state, caller, registry.find(state, caller, name, str(number)))


def _deletion(state: AppState, caller: Caller, version: Served) -> VersionDeletionView:
    with state.database.read() as session:
        caller.must(Scope.BACKBONES, *owners(session, version.row))
        versions.must_not_be_the_last(session, caller, version.row)
        named, used_by = aliases.of_version(session, version.row), use.users(session, version.row)
        kept = aliases.keeps(session, version.row) or needed.keeps(session, version.row)
    files = state.artifacts.files(version.folder)
    return VersionDeletionView(
        name=version.name,
        version=version.number,
        job_id=version.row.job_id,
        artifact_uri=version.folder,
        files=len(files),
        bytes=sum(size for _, size in files),
        used_by=used_by,
        aliases=named,
        kept=kept,
    )


def delete_version(state: AppState, caller: Caller, name: str, number: int) -> VersionDeletionView:
    """Hide a version at once; the controller removes it later.

    Raises 403 and 404, and 409 if it has an alias, or a job that has not ended needs it.
    """
    known = registry.find(state, caller, name, str(number))
    preview = _deletion(state, caller, known)
    with state.database.session() as session:
        version = shown_now(session, known)
        caller.must(Scope.BACKBONES, *owners(session, version.row))
        versions.must_not_be_the_last(session, caller, version.row)
        if kept := aliases.keeps(session, version.row):
            raise ApiProblem(409, "version_has_alias", kept)
        needed.must_not_be(session, version.row)
        versions.delete(session, version.row, caller.owner)
        caller.record(session, name, version=number, job=version.row.job_id)
    log.info("version_deleted", backbone=name, version=number, job_id=preview.job_id, actor=caller.owner)
    state.wake.set()
    return preview


def owners(session: Session, version: BackboneVersion) -> tuple[str, ...]:
    """Who may change a version, with its aliases: its own owner, and that of its backbone."""
    backbone = session.get(RegisteredBackbone, version.name)
    return (version.owner, backbone.owner) if backbone else (version.owner,)


def shown_now(session: Session, version: Served) -> Served:
    """A version as it is in this transaction. Raises the API's 404."""
    row = session.get(BackboneVersion, (version.name, version.number))
    if row is None or row.state not in versions.SHOWN or row.source != version.row.source:
        raise not_found("version", f"{version.name}:{version.number}")
    return Served(row, version.folder)


def _check_alias(alias: str) -> None:
    """Raises the API's 422 for an alias that is malformed or has another meaning."""
    if not registry.ALIAS.fullmatch(alias) or registry.RESERVED.fullmatch(alias):
        text = (
            f"alias: {alias!r} is invalid: use a lower-case letter followed by at most 62 lower-case letters, digits, "
            f"_ or -, for example {CHAMPION}; main, latest, v and a number, and 40 hexadecimal digits are reserved"
        )
        raise ApiProblem(422, "parameter_invalid", text)

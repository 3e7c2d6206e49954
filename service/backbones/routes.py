"""Backbone routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.backbones import editing, evaluated, registry, service
from service.backbones.approval_schemas import Reason
from service.backbones.filters import Filters
from service.backbones.schemas import (
    LARGEST,
    AliasBody,
    BackboneDetailView,
    BackbonePatch,
    BackboneView,
    VersionDeletionView,
    VersionPatch,
    VersionSummaryView,
    VersionType,
    VersionView,
)
from service.backbones.sorting import KEYS
from service.context.app_state import MayChangeBackbones, MayReadBackbones, StateDep
from service.http.ranges import file_response, not_modified
from service.http.routing import ApiRoute
from service.http.schemas import Page
from trainer.spec.export import BackboneFormat

router = APIRouter(prefix="/v1/backbones", tags=["backbones"], route_class=ApiRoute)


class MarkdownResponse(Response):
    """A text in Markdown."""

    media_type = "text/markdown"


Limit = Annotated[int, Query(ge=1, le=500)]
Reference = Annotated[
    str,
    Path(
        description="a number such as `3` or `v3`, `latest`, `main` (the champion, otherwise the latest version), an "
        "alias or a commit"
    ),
]
Number = Annotated[int, Path(ge=1, le=LARGEST)]


@router.get("")
def listing(
    state: StateDep,
    caller: MayReadBackbones,
    name_contains: str | None = None,
    job: Annotated[str | None, Query(description="the job that registered it, or that trained it")] = None,
    dataset: Annotated[str | None, Query(description="the dataset's fingerprint or URI")] = None,
    type: Annotated[VersionType | None, Query(description="backbones alone, or classifiers alone")] = None,  # noqa: A002 - API name
    method: str | None = None,
    network: str | None = None,
    format: Annotated[BackboneFormat | None, Query(description="a format in which it can be pulled")] = None,  # noqa: A002 - API name
    alias: str | None = None,
    owner: Annotated[str | None, Query(description="who owns the backbone or the version")] = None,
    search: Annotated[
        str | None,
        Query(
            max_length=200,
            description="words that are all in the name, dataset, description or labels of the version or its "
            "backbone, in upper or lower case",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        Query(description="name:value; the version or its backbone has to have all of them", max_length=32),
    ] = None,
    filter: Annotated[  # noqa: A002 - API name
        list[str] | None,
        Query(
            description="a result, one of `<`, `<=`, `>`, `>=`, `=` and a number: `eval/linear_top1 >= 0.5`; the "
            "version has to meet all of them",
            max_length=16,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        Query(
            pattern=f"^{KEYS}$",
            description="`updated_at`, `downloads`, `last_used_on`, `bytes`, or an evaluation result of `main_version` "
            "such as `eval/linear_top1`; a leading `-` sorts the greatest first. Backbones without the value come "
            "last. By default the list is sorted by name",
        ),
    ] = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[BackboneView]:
    """Registered backbones with a version that matches all filters; only the matching versions are listed."""
    filters = Filters.of(
        name_contains=name_contains,
        job=job,
        dataset=dataset,
        type=type,
        method=method,
        network=network,
        export_format=format,
        alias=alias,
        owner=owner,
        search=search,
        label=label,
        metrics=filter,
    )
    return service.listing(state, caller, filters, sort, limit, cursor)


@router.get("/{name}")
def show(name: str, state: StateDep, caller: MayReadBackbones) -> BackboneDetailView:
    """One backbone with its aliases and the details of all versions."""
    return service.show(state, caller, name)


@router.patch("/{name}")
def patch(name: str, body: BackbonePatch, state: StateDep, caller: MayChangeBackbones) -> BackboneDetailView:
    """Change a backbone's description, labels, owner or who sees it; fields that are left out keep their values."""
    return editing.patch(state, caller, name, body)


@router.patch("/{name}/versions/{version}")
def patch_version(
    name: str, version: Number, body: VersionPatch, state: StateDep, caller: MayChangeBackbones
) -> VersionSummaryView:
    """Change a version's description or labels; fields that are left out keep their values."""
    return editing.patch_version(state, caller, name, version, body)


@router.put("/{name}/aliases/{alias}")
def set_alias(
    name: str, alias: str, body: AliasBody, state: StateDep, caller: MayChangeBackbones
) -> BackboneDetailView:
    """Point an alias at a version, whatever it pointed at before. `main` means the alias `champion` once it exists."""
    return service.set_alias(state, caller, name, alias, body.version, body.reason)


@router.delete("/{name}/aliases/{alias}")
def delete_alias(
    name: str,
    alias: str,
    state: StateDep,
    caller: MayChangeBackbones,
    reason: Annotated[Reason, Query(description="why, which the alias's history keeps")] = "",
) -> BackboneDetailView:
    """Remove an alias. The version that it pointed at stays. 409 for the champion of a backbone with a rule for it."""
    return service.delete_alias(state, caller, name, alias, reason)


@router.get("/{name}/versions/{version}")
def show_version(name: str, version: Reference, state: StateDep, caller: MayReadBackbones) -> VersionView:
    """One version with its files."""
    return service.show_version(state, caller, name, version)


@router.delete("/{name}/versions/{version}")
def delete_version(
    name: str,
    version: Number,
    state: StateDep,
    caller: MayChangeBackbones,
    preview: Annotated[bool, Query(description="report what would be deleted, without deleting it")] = False,
) -> VersionDeletionView:
    """Delete a version with its files, and report what is deleted.

    409 if an alias points at it, or if a job that has not ended measures or uses it.
    """
    if preview:
        caller.changes_nothing()
        return service.deletion(state, caller, name, version)
    return service.delete_version(state, caller, name, version)


@router.get("/{name}/versions/{version}/evaluations.md", response_class=MarkdownResponse)
def evaluated_since(name: str, version: Reference, state: StateDep, caller: MayReadBackbones) -> Response:
    """An addendum to the version's card, in Markdown: the newest results of evaluations since it was registered.

    It is no file of the version, whose files never change. Empty if nothing has evaluated it.
    """
    return MarkdownResponse(evaluated.addendum(state, caller, name, version))


@router.get("/{name}/versions/{version}/files/{path:path}", response_class=StreamingResponse)
@router.head("/{name}/versions/{version}/files/{path:path}", response_class=StreamingResponse)
def file(
    name: str,
    version: Reference,
    path: str,
    state: StateDep,
    caller: MayReadBackbones,
    request: Request,
) -> Response:
    """One file, streamed. `Range` is supported, and `ETag` is the file's sha256.

    If `RCMAE_PRESIGNED_DOWNLOADS` is set, GET redirects to a signed link into S3, except for the model card and its
    pictures: the dashboard's pages load nothing from elsewhere.
    """
    stored, digest = service.file(state, caller, name, version, path)
    etag = f'"{digest}"'
    redirectable = request.method == "GET" and not not_modified(request, etag) and not registry.belongs_to_card(path)
    link = service.link(state, stored) if redirectable else None
    if link:
        return Response(status_code=302, headers={"Location": link, "ETag": etag, "Cache-Control": "no-store"})
    return file_response(request, stored, etag)


@router.get("/{name}/versions/{version}/archive", response_class=StreamingResponse)
@router.head("/{name}/versions/{version}/archive", response_class=StreamingResponse)
def archive(
    name: str,
    version: Reference,
    state: StateDep,
    caller: MayReadBackbones,
    request: Request,
    format: Annotated[BackboneFormat | None, Query(description="one format; by default all files")] = None,  # noqa: A002
) -> Response:
    """A version as one tar: all files, or one format with the card and the checksums. `Range` is supported."""
    tar, filename, identity = service.archive(state, caller, name, version, format)
    headers = {"Content-Disposition": f'attachment; filename="{filename}"'}
    return file_response(request, tar, f'"{identity}"', "application/x-tar", headers)

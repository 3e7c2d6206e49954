"""Routes of backbones."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.backbones import registry, service
from service.backbones.schemas import (
    LARGEST,
    AliasBody,
    BackboneDetailView,
    BackboneView,
    VersionDeletionView,
    VersionView,
)
from service.backbones.service import Filters
from service.context.app_state import CallerDep, StateDep
from service.http.ranges import file_response, not_modified
from service.http.schemas import Page
from trainer.spec.export import BackboneFormat

router = APIRouter(prefix="/v1/backbones", tags=["backbones"])

Limit = Annotated[int, Query(ge=1, le=500)]
Reference = Annotated[str, Path(description="a number, `latest`, `main` (the champion, else the latest) or an alias")]
Number = Annotated[int, Path(ge=1, le=LARGEST)]
SORTS = r"^(-?(updated_at|[a-z]+/[A-Za-z0-9_./-]{1,200}))$"


@router.get("")
def listing(
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    name_contains: str | None = None,
    job: Annotated[str | None, Query(description="that registered it, or that trained it")] = None,
    dataset: Annotated[str | None, Query(description="its fingerprint, or its URI")] = None,
    method: str | None = None,
    network: str | None = None,
    format: Annotated[BackboneFormat | None, Query(description="that can be pulled")] = None,  # noqa: A002 - its name in the API
    alias: str | None = None,
    sort: Annotated[
        str | None,
        Query(
            pattern=SORTS,
            description="`updated_at`, or a result of evaluation such as `eval/linear_top1`, of `main_version`; with "
            "`-` before it the greatest first, those without it last; by name without it",
        ),
    ] = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[BackboneView]:
    """Registered backbones: those with a version that fits all filters, and of each the versions that fit."""
    filters = Filters(name_contains, job, dataset, method, network, format, alias)
    return service.listing(state, filters, sort, limit, cursor)


@router.get("/{name}")
def show(name: str, state: StateDep, caller: CallerDep) -> BackboneDetailView:  # noqa: ARG001 - a token is needed
    """One backbone with its aliases and versions, and what is known of each."""
    return service.show(state, name)


@router.put("/{name}/aliases/{alias}")
def set_alias(name: str, alias: str, body: AliasBody, state: StateDep, caller: CallerDep) -> BackboneDetailView:
    """Let an alias stand for a version, whatever it stood for before. `champion` is what `main` means from then on."""
    return service.set_alias(state, caller, name, alias, body.version)


@router.delete("/{name}/aliases/{alias}")
def delete_alias(name: str, alias: str, state: StateDep, caller: CallerDep) -> BackboneDetailView:
    """Remove an alias; the version that it stood for stays."""
    return service.delete_alias(state, caller, name, alias)


@router.get("/{name}/versions/{version}")
def show_version(name: str, version: Reference, state: StateDep, caller: CallerDep) -> VersionView:  # noqa: ARG001
    """One version with its files."""
    return service.show_version(state, name, version)


@router.delete("/{name}/versions/{version}")
def delete_version(
    name: str,
    version: Number,
    state: StateDep,
    caller: CallerDep,
    preview: Annotated[bool, Query(description="say what would go, and delete nothing")] = False,
) -> VersionDeletionView:
    """Delete a version with its files; answers what goes. One that an alias stands for is kept: 409."""
    if preview:
        caller.changes_nothing()
        return service.deletion(state, caller, name, version)
    return service.delete_version(state, caller, name, version)


@router.get("/{name}/versions/{version}/files/{path:path}", response_class=StreamingResponse)
@router.head("/{name}/versions/{version}/files/{path:path}", response_class=StreamingResponse)
def file(
    name: str,
    version: Reference,
    path: str,
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    request: Request,
) -> Response:
    """One file, streamed; `Range` is understood and `ETag` is its sha256.

    Where the service is set so, GET is sent on to a signed link into S3; but for the card and its pictures, which pages
    show that take nothing from elsewhere.
    """
    found, digest = service.file(state, name, version, path)
    etag = f'"{digest}"'
    wanted = request.method == "GET" and not not_modified(request, etag) and not registry.of_the_card(path)
    link = service.link(state, found) if wanted else None
    if link:
        return Response(status_code=302, headers={"Location": link, "ETag": etag, "Cache-Control": "no-store"})
    return file_response(request, found, etag)


@router.get("/{name}/versions/{version}/archive", response_class=StreamingResponse)
@router.head("/{name}/versions/{version}/archive", response_class=StreamingResponse)
def archive(
    name: str,
    version: Reference,
    state: StateDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    request: Request,
    format: Annotated[BackboneFormat | None, Query(description="only this one; else all")] = None,  # noqa: A002
) -> Response:
    """All of a version, or one format with the card and the checksums, as one tar; `Range` is understood."""
    made, title, identity = service.archive(state, name, version, format)
    attached = {"Content-Disposition": f'attachment; filename="{title}"'}
    return file_response(request, made, f'"{identity}"', "application/x-tar", attached)

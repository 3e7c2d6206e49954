"""Routes of backbones."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.backbones import service
from service.backbones.download import answer
from service.backbones.schemas import BackboneView, VersionView
from service.deps import CallerDep, PartsDep
from service.jobs.schemas import Page

router = APIRouter(prefix="/v1/backbones", tags=["backbones"])


@router.get("")
def listing(parts: PartsDep, caller: CallerDep) -> Page[BackboneView]:  # noqa: ARG001 - a token is needed
    """Registered backbones."""
    return service.listing(parts)


@router.get("/{name}")
def show(name: str, parts: PartsDep, caller: CallerDep) -> BackboneView:  # noqa: ARG001 - a token is needed
    """One backbone."""
    return service.show(parts, name)


@router.get("/{name}/versions/{version}")
def show_version(name: str, version: int, parts: PartsDep, caller: CallerDep) -> VersionView:  # noqa: ARG001 - a token is needed
    """One version with its files."""
    return service.show_version(parts, name, version)


@router.get("/{name}/versions/{version}/files/{path:path}", response_class=StreamingResponse)
@router.head("/{name}/versions/{version}/files/{path:path}", response_class=StreamingResponse)
def file(
    name: str,
    version: int,
    path: str,
    parts: PartsDep,
    caller: CallerDep,  # noqa: ARG001 - a token is needed
    request: Request,
) -> Response:
    """One file, streamed; `Range` is understood and `ETag` is its sha256."""
    found, digest = service.file(parts, name, version, path)
    return answer(request, found, f'"{digest}"')

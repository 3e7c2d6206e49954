"""Routes of signatures and public keys. They stand before the routes of backbones, whose path of a file takes any."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from service.backbones import signing
from service.backbones.signature_schemas import SIGNATURE_FILE, SigningKeyView, VersionSignatureView
from service.context.app_state import MayReadBackbones, StateDep
from service.http.ranges import file_response
from service.http.routing import ApiRoute
from service.http.schemas import Page

router = APIRouter(prefix="/v1", tags=["backbones"], route_class=ApiRoute)

Reference = Annotated[
    str, Path(description="a number, `latest`, `main` (the champion, otherwise the latest version) or an alias")
]


@router.get("/signing-keys")
def keys(state: StateDep, caller: MayReadBackbones) -> Page[SigningKeyView]:  # noqa: ARG001 - a token is needed
    """All public keys that the service has ever signed backbones with, the newest first, on one page."""
    return Page[SigningKeyView](items=signing.keys(state))


@router.get("/backbones/{name}/versions/{version}/signature")
def signature(
    name: str,
    version: Reference,
    state: StateDep,
    caller: MayReadBackbones,
) -> VersionSignatureView:
    """The signature over a version's `SHA256SUMS`, with the key. 404 if the version is not signed."""
    return signing.show(state, caller, name, version)


@router.get(f"/backbones/{{name}}/versions/{{version}}/files/{SIGNATURE_FILE}", response_class=StreamingResponse)
@router.head(f"/backbones/{{name}}/versions/{{version}}/files/{SIGNATURE_FILE}", response_class=StreamingResponse)
def signature_file(
    name: str,
    version: Reference,
    state: StateDep,
    caller: MayReadBackbones,
    request: Request,
) -> Response:
    """The signature as a file: 64 bytes, as `openssl pkeyutl -verify -rawin` takes them."""
    _, found = signing.find(state, caller, name, version)
    return file_response(request, found, f'"{found.sha256}"')

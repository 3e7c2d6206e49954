"""Scripts and styles: our own files, a copy of idiomorph, which no Python package carries, and htmx and plotly.js from
installed packages. Nothing is loaded from a CDN.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

from service.http.problems import not_found
from service.http.routing import ApiRoute

OWN: Final = Path(__file__).parent / "static"
FOREVER: Final = "public, max-age=31536000, immutable"
SMALLEST_COMPRESSED: Final = 1024
"""Bytes below which compression gains nothing."""

router = APIRouter(include_in_schema=False, route_class=ApiRoute)


def _packaged(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported. Raises `ImportError` if it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the dashboard needs {package}: install rcmae[server]")
    return Path(spec.submodule_search_locations[0]) / path


class Asset:
    """One file. Its content and its compressed form are cached."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.media_type = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0]

    @cached_property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.data, 6, mtime=0)

    def response(self, request: Request, cache_control: str) -> Response:
        headers = {"Cache-Control": cache_control, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
        if "gzip" in request.headers.get("Accept-Encoding", "") and len(self.data) >= SMALLEST_COMPRESSED:
            return Response(self.compressed, media_type=self.media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(self.data, media_type=self.media_type, headers=headers)


ASSETS: Final[dict[str, Asset]] = {
    **{path.relative_to(OWN).as_posix(): Asset(path) for path in sorted(OWN.rglob("*")) if path.is_file()},
    "htmx.min.js": Asset(_packaged("js_lib_htmx", "static/htmx/htmx.min.js")),
    "plotly.min.js": Asset(_packaged("plotly", "package_data/plotly.min.js")),
}


def _digest() -> str:
    """A digest of all assets. It is part of their URLs, so that browsers load them again when one changes."""
    digest = hashlib.sha256("".join(version(name) for name in ("django-js-lib-htmx", "plotly")).encode())
    for name, asset in ASSETS.items():
        if asset.path.is_relative_to(OWN):
            digest.update(name.encode() + asset.data)
    return digest.hexdigest()[:12]


DIGEST: Final = _digest()


def url_of(name: str) -> str:
    """The path of an asset on this server. Raises `KeyError` if there is no such asset."""
    return f"/assets/{DIGEST}/{ASSETS[name] and name}"


@router.get("/assets/{digest}/{name:path}")
def asset(digest: str, name: str, request: Request) -> Response:
    """A script, a style or a picture.

    During a rolling upgrade, a page of one replica may request an asset from another one, with the wrong digest: it
    gets that replica's asset, which is not cached.
    """
    if name not in ASSETS:
        raise not_found("file", name)
    return ASSETS[name].response(request, FOREVER if digest == DIGEST else "no-cache")

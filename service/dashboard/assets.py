"""Scripts and styles: our own, a copy of idiomorph, which no Python package carries, and htmx and plotly.js out of
installed packages. A page loads nothing from anywhere else.
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

OWN: Final = Path(__file__).parent / "static"
FOREVER: Final = "public, max-age=31536000, immutable"
WORTH_IT: Final = 1024
"""Bytes below which packing gains nothing."""

router = APIRouter(include_in_schema=False)


def _packaged(package: str, path: str) -> Path:
    """A file of an installed package, of which nothing is imported."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the dashboard needs {package}: install rcmae[server]")
    return Path(found.submodule_search_locations[0]) / path


class Asset:
    """One file, as it is and packed; both are read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.media_type = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0]

    @cached_property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.data, 6, mtime=0)

    def answer(self, request: Request, cache: str) -> Response:
        headers = {"Cache-Control": cache, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
        if "gzip" in request.headers.get("Accept-Encoding", "") and len(self.data) >= WORTH_IT:
            return Response(self.packed, media_type=self.media_type, headers=headers | {"Content-Encoding": "gzip"})
        return Response(self.data, media_type=self.media_type, headers=headers)


ASSETS: Final[dict[str, Asset]] = {
    **{path.relative_to(OWN).as_posix(): Asset(path) for path in sorted(OWN.rglob("*")) if path.is_file()},
    "htmx.min.js": Asset(_packaged("js_lib_htmx", "static/htmx/htmx.min.js")),
    "plotly.min.js": Asset(_packaged("plotly", "package_data/plotly.min.js")),
}


def _digest() -> str:
    """Of all of them: with another one of it browsers ask for all anew."""
    found = hashlib.sha256("".join(version(name) for name in ("django-js-lib-htmx", "plotly")).encode())
    for name, asset in ASSETS.items():
        if asset.path.is_relative_to(OWN):
            found.update(name.encode() + asset.data)
    return found.hexdigest()[:12]


DIGEST: Final = _digest()


def url_of(name: str) -> str:
    """Where an asset is; raises ``KeyError`` for one that there is not."""
    return f"/assets/{DIGEST}/{ASSETS[name] and name}"


@router.get("/assets/{digest}/{name:path}")
def asset(digest: str, name: str, request: Request) -> Response:
    """A script, a style or a picture. While replicas are replaced, a page of one may ask another: it gets what there
    is, to keep until it asks again."""
    if name not in ASSETS:
        raise not_found("file", name)
    return ASSETS[name].answer(request, FOREVER if digest == DIGEST else "no-cache")

"""Swagger UI for an application's API, `/docs`, from an installed package.

FastAPI's own page loads it from a CDN, and holds a script that the pages' Content-Security-Policy forbids.
"""

from __future__ import annotations

from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.http.headers import PAGE_HEADERS, POLICY
from service.http.routing import ApiRoute

ASSETS: Final = "/docs/assets"
PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: REST API</title>
<link rel="icon" href="{assets}/favicon-32x32.png">
<link rel="stylesheet" href="{assets}/swagger-ui.css">
<script src="{assets}/swagger-ui-bundle.js" defer></script>
<script src="{assets}/start.js" defer></script>
</head>
<body><div id="swagger-ui"></div></body>
</html>
"""
START: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  showExtensions: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""


def install(app: FastAPI) -> None:
    """Add the page and its files. Raises `ImportError` where the package is missing."""
    package = find_spec("flask_swagger_ui")  # only for its files: Flask is not imported
    if package is None or not package.submodule_search_locations:
        raise ImportError("Swagger UI is missing: install flask-swagger-ui")
    router = APIRouter(route_class=ApiRoute)
    files = StaticFiles(directory=Path(package.submodule_search_locations[0]) / "dist")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = PAGE_HEADERS | {"Content-Security-Policy": POLICY.format(styles="")}
        return HTMLResponse(PAGE.format(title=escape(app.title), assets=ASSETS), headers=headers)

    @router.get(f"{ASSETS}/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(START, media_type="text/javascript")

    # A route instead of a mount: it answers other methods with the API's 405, as all routes do.
    @router.get(f"{ASSETS}/{{path:path}}", include_in_schema=False)
    async def asset(path: str, request: Request) -> Response:
        return await files.get_response(files.get_path({"path": path, "root_path": ""}), request.scope)

    app.include_router(router)

"""Swagger UI for an application's API, `/docs`, from an installed package: FastAPI's own page loads it from a CDN."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from service.http.routing import ApiRoute

ASSETS = "/docs/assets"
router = APIRouter(route_class=ApiRoute)


def install(app: FastAPI) -> None:
    """Add the page and its files. Raises `ImportError` where the package is missing."""
    package = find_spec("flask_swagger_ui")  # only for its files: Flask is not imported
    if package is None or not package.submodule_search_locations:
        raise ImportError("Swagger UI is missing: install flask-swagger-ui")
    files = Path(package.submodule_search_locations[0]) / "dist"
    app.mount(ASSETS, StaticFiles(directory=files), name="docs-assets")
    app.include_router(router)


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
        swagger_ui_parameters={"validatorUrl": None},
    )

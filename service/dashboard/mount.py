"""Adds the dashboard's pages to the application."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.dashboard import assets
from service.dashboard.pages import (
    access,
    backbones,
    cluster,
    comparison,
    evaluating,
    evaluations,
    home,
    hub,
    jobs,
    login,
    retention,
    searches,
    starting,
    webhooks,
)
from service.dashboard.site import problem_page
from service.http.problems import ApiProblem

NOT_PAGES: Final = ("/v1", "/hf", "/forms", "/assets", "/docs", "/openapi.json", "/metrics", "/healthz", "/readyz")


def install(app: FastAPI) -> None:
    """Add all pages. Routes with a fixed path come before routes with an id, because the first match wins."""
    app.include_router(assets.router)
    own = (login, home, starting, jobs, searches, backbones, comparison, evaluating, evaluations)
    for pages in (*own, retention, hub, cluster, access, webhooks):
        app.include_router(pages.router)

    app.include_router(starting.forms)

    api_handler = app.exception_handlers[HTTPException]

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> Response:
        """Shows browsers an unknown path as an HTML page instead of the API's JSON."""
        wants_page = "text/html" in request.headers.get("Accept", "") and not request.url.path.startswith(NOT_PAGES)
        if error.status_code == 404 and wants_page:
            return problem_page(request, ApiProblem(404, "not_found", f"there is no page {request.url.path}"))
        response: Response = await api_handler(request, error)  # type: ignore[misc]
        return response

"""All pages, as a part of the application."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.dashboard import assets
from service.dashboard.pages import access, backbones, cluster, home, jobs, login, searches, starting
from service.dashboard.site import problem_page
from service.http.problems import ApiProblem

NOT_PAGES: Final = ("/v1", "/hf", "/forms", "/assets", "/docs", "/openapi.json", "/metrics", "/healthz", "/readyz")


def install(app: FastAPI) -> None:
    """Answer `/` and what lies below it for browsers. What has a fixed address goes before what has an id."""
    app.include_router(assets.router)
    for pages in (login, home, starting, jobs, searches, backbones, cluster, access):
        app.include_router(pages.router)

    app.include_router(starting.forms)

    plain = app.exception_handlers[HTTPException]

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        """An address that is no page is told as a page to those who look for one."""
        wants_page = "text/html" in request.headers.get("Accept", "") and not request.url.path.startswith(NOT_PAGES)
        if error.status_code == 404 and wants_page:
            return problem_page(request, ApiProblem(404, "not_found", f"there is no page {request.url.path}"))
        answer: Response = await plain(request, error)  # type: ignore[misc]
        return answer

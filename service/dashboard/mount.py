"""All pages, as a part of the application."""

from __future__ import annotations

from fastapi import FastAPI

from service.dashboard import assets
from service.dashboard.pages import access, backbones, cluster, home, jobs, login, searches, starting


def install(app: FastAPI) -> None:
    """Answer `/` and what lies below it for browsers. What has a fixed address goes before what has an id."""
    app.include_router(assets.router)
    for pages in (login, home, starting, jobs, searches, backbones, cluster, access):
        app.include_router(pages.router)

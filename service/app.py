"""The control plane's application: ``python -m uvicorn --factory service.app:create_app``."""

from __future__ import annotations

from fastapi import FastAPI

from service.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API over the given settings, or those of the environment."""
    settings = settings or Settings()
    return FastAPI(title="rcmae")

"""The HTTP application: `uvicorn --factory service.app:create_app`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from pathlib import Path

import structlog
import swagger_ui_bundle
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from service import errors
from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.adapters.storage import Artifacts
from service.auth import ensure_admin
from service.backbones.routes import router as backbones
from service.db import Database
from service.deps import Parts
from service.jobs.control import Control
from service.jobs.reconciler import Reconciler
from service.jobs.routes import router as jobs
from service.lease import Lease
from service.readiness import Readiness
from service.settings import Settings

log = structlog.get_logger()

DOCS_ASSETS = "/docs/assets"


def configure_logs() -> None:
    """One JSON object a line. structlog's own default prints every local variable beside a traceback: tokens too."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


def assemble(settings: Settings, refused: Callable[[str], None]) -> Parts:
    """All parts of a service, nothing of it started; ``refused`` is told why its reconciler may not act."""
    database = Database(settings.database_url)
    ray = RayCluster(settings.ray_url, settings.ray_token_file, settings.trainer_python, settings.s3_profile)
    mlflow, artifacts = MlflowStore(settings.mlflow_url), Artifacts(settings.artifact_root, settings.s3_profile)
    lease = Lease(database, settings.lease_s, standby=not database.is_sqlite, refused=refused)
    reconciler = Reconciler(Control(settings, database, ray, mlflow, artifacts, lease))
    return Parts(settings, database, ray, mlflow, artifacts, reconciler)


def close(parts: Parts) -> None:
    """Let go of the connections of parts that have ended."""
    parts.ray.close()
    parts.database.close()


def _end_process(_: str) -> None:
    """An API whose reconciler may not act ends like one that is told to: the reason has been logged."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service with all its parts; they start with the application and end with it."""
    configure_logs()
    parts = assemble(settings or Settings(), refused=_end_process)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI's form
        parts.database.migrate()
        if parts.settings.admin_token_file:
            ensure_admin(parts.database, parts.settings.admin_token_file)
        if parts.settings.reconcile:
            parts.reconciler.start()
        log.info("service_started", version=version("rcmae"))
        yield
        if parts.settings.reconcile:
            parts.reconciler.stop()
        close(parts)
        log.info("service_ended")

    app = FastAPI(title="rcmae", version=version("rcmae"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.parts = parts
    errors.install(app)
    app.include_router(jobs)
    app.include_router(backbones)
    _health(app, Readiness(parts))
    _docs(app)
    return app


def _health(app: FastAPI, readiness: Readiness) -> None:
    @app.get("/healthz", tags=["health"])
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def readyz() -> JSONResponse:
        """Whether all that jobs need is there and the loop gets on; 503 with reasons if not."""
        reasons = readiness.reasons()
        body = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        return JSONResponse(body, 503 if reasons else 200)


def _docs(app: FastAPI) -> None:
    """Swagger's page out of an installed package: FastAPI's own loads it from elsewhere."""
    assets = Path(swagger_ui_bundle.swagger_ui_path)
    app.mount(DOCS_ASSETS, StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="rcmae",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon-32x32.png",
        )

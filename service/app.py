"""The HTTP application: `uvicorn --factory service.app:create_app`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import structlog
import swagger_ui_bundle
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from service import errors
from service.adapters.mlflow_store import MlflowStore, MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable, RayCluster
from service.adapters.storage import Artifacts, StorageUnreachable
from service.auth import ensure_admin
from service.backbones.routes import router as backbones
from service.db import Database
from service.deps import Parts
from service.jobs.control import Control
from service.jobs.reconciler import Reconciler
from service.jobs.repository import count
from service.jobs.routes import router as jobs
from service.lease import Lease
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


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service with all its parts; they start with the application and end with it."""
    configure_logs()
    settings = settings or Settings()
    database = Database(settings.database_url)
    ray = RayCluster(settings.ray_url, settings.ray_token_file, settings.trainer_python, settings.s3_profile)
    mlflow, artifacts = MlflowStore(settings.mlflow_url), Artifacts(settings.artifact_root, settings.s3_profile)
    lease = Lease(database, settings.lease_s, standby=not database.is_sqlite)
    reconciler = Reconciler(Control(settings, database, ray, mlflow, artifacts, lease))
    parts = Parts(settings, database, ray, mlflow, artifacts, reconciler)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI's form
        database.migrate()
        if settings.admin_token_file:
            ensure_admin(database, settings.admin_token_file)
        if settings.reconcile:
            parts.reconciler.start()
        log.info("service_started", version=version("rcmae"))
        yield
        if settings.reconcile:
            parts.reconciler.stop()
        ray.close()
        database.close()

    app = FastAPI(title="rcmae", version=version("rcmae"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.parts = parts
    errors.install(app)
    app.include_router(jobs)
    app.include_router(backbones)
    _health(app, parts)
    _docs(app)
    return app


def _health(app: FastAPI, parts: Parts) -> None:
    @app.get("/healthz", tags=["health"])
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def readyz() -> JSONResponse:
        """Whether all that jobs need is there and the loop gets on; 503 with reasons if not."""
        reasons = _not_ready(parts)
        body = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        return JSONResponse(body, 503 if reasons else 200)


def _not_ready(parts: Parts) -> list[str]:
    reasons = []
    try:
        with parts.database.read() as session:
            count(session)
    except Exception as error:  # noqa: BLE001 - whatever the driver raises, the database is not there
        reasons.append(f"database: {error}")
    try:
        parts.mlflow.ping()
    except MlflowUnreachable as error:
        reasons.append(f"MLflow: {error}")
    try:
        if not parts.ray.shape().cpus:
            reasons.append("Ray: no node has joined the cluster yet")
    except ClusterUnreachable as error:
        reasons.append(f"Ray: {error}")
    try:
        parts.artifacts.ping()
    except StorageUnreachable as error:
        reasons.append(f"storage: {error}")
    if parts.settings.reconcile:
        stuck = parts.reconciler.stuck()
        if stuck is not None:
            reasons.append(f"the reconciler has not finished a round for {stuck:.0f} s")
    return reasons


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

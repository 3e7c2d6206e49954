"""The HTTP application: `uvicorn --factory service.app:create_app`."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import structlog
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import DataError

from service.access.audit import AuditLog
from service.access.routes import router as access
from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.adapters.storage import Artifacts, OutsideRoot, StorageUnreachable
from service.adapters.studies import Studies, StudiesUnreachable
from service.api_description import API
from service.auth.caller import ensure_admin
from service.auth.sessions import Sessions
from service.backbones import hub
from service.backbones.routes import router as backbones
from service.cluster.routes import router as cluster
from service.context.app_state import AppState
from service.controller.context import ControllerContext
from service.controller.lease import Lease
from service.controller.loop import Reconciler
from service.dashboard import mount
from service.db.database import Database, DatabaseUnreachable
from service.http import handlers, openapi
from service.http.limits import BodyTooLarge, body_too_large
from service.http.problems import ApiProblem, Problems, unavailable
from service.http.schemas import View
from service.jobs.changes import Changes
from service.jobs.routes import metrics_router, stream_router
from service.jobs.routes import router as jobs
from service.jobs.stream import Streams
from service.kinds.registry import KINDS
from service.observability import requests
from service.observability.readiness import Readiness
from service.searches.plots import Plots
from service.searches.routes import router as searches
from service.settings import Settings

log = structlog.get_logger()

DOCS_ASSETS = "/docs/assets"
PROBLEMS: Final = Problems(
    {
        BodyTooLarge: body_too_large,
        StorageUnreachable: lambda error: unavailable("the artifact storage", error),
        DatabaseUnreachable: lambda error: unavailable("the database", error),
        StudiesUnreachable: lambda error: unavailable("the record of trials", error),
        OutsideRoot: lambda error: ApiProblem(
            404,
            "artifacts_not_here",
            f"{error}: the artifact root has changed since then, and files elsewhere are never served",
        ),
        DataError: lambda error: ApiProblem(
            422, "parameter_invalid", f"the database cannot store a value of the request: {error.orig}"
        ),
    },
    headers_below={f"{hub.PREFIX}/": hub.problem_headers},
)
"""The problems that exceptions of the lower layers become."""


def configure_logs() -> None:
    """Log one JSON object per line. structlog's default prints local variables with tracebacks, tokens included."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


def assemble(settings: Settings, refused: Callable[[str], None]) -> tuple[AppState, Reconciler]:
    """A service and its reconciler, not started. ``refused`` gets the reason if the reconciler may not act."""
    database = Database(settings.database_url)
    ray = RayCluster(settings.ray_url, settings.ray_token_file, settings.trainer_python, settings.s3_profile)
    mlflow = MlflowStore(settings.mlflow_url)
    artifacts = Artifacts(settings.artifact_root, settings.s3_profile, settings.presigned_endpoint)
    studies = Studies(settings.study_url)
    lease = Lease(database, settings.lease_s, standby=not database.is_sqlite, refused=refused)
    state = AppState(settings, database, ray, mlflow, artifacts, studies, KINDS)
    return state, Reconciler(ControllerContext(state, KINDS, lease))


def close(state: AppState) -> None:
    """Close all connections."""
    state.ray.close()
    state.studies.close()
    state.database.close()


def _end_process(_: str) -> None:
    """Ends this process as SIGTERM does, because its reconciler may not act. The reason has been logged."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The whole service. The reconciler starts and stops with the application."""
    configure_logs()
    state, reconciler = assemble(settings or Settings(), refused=_end_process)
    streams, own_reconciler = Streams(), reconciler if state.settings.reconcile else None

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI's form
        state.database.migrate()
        if state.settings.admin_token_file:
            ensure_admin(state.database, state.settings.admin_token_file)
        if own_reconciler:
            own_reconciler.start()
        # Objects that exist by now are permanent: scanning them blocked requests for 180 ms.
        gc.freeze()
        log.info("service_started", version=version("rcmae"))
        with streams.closed_by_signals():
            yield
        gc.unfreeze()
        if own_reconciler:
            own_reconciler.stop()
        close(state)
        log.info("service_ended")

    app = FastAPI(title="rcmae", version=version("rcmae"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.app_state, app.state.streams, app.state.plots = state, streams, Plots(state.studies)
    app.state.sessions, app.state.changes = Sessions(state.settings.admin_token_file), Changes(state.database, streams)
    app.add_middleware(AuditLog)  # the middleware added last is the outermost
    handlers.install(app, PROBLEMS, state.settings.body_limit_bytes)
    requests.install(app, state, own_reconciler)
    openapi.install(app, API)
    app.include_router(jobs)
    app.include_router(metrics_router)
    app.include_router(stream_router)
    app.include_router(searches)
    app.include_router(backbones)
    app.include_router(hub.router)
    app.include_router(cluster)
    app.include_router(access)
    mount.install(app)
    _health(app, Readiness(state, own_reconciler))
    _docs(app)
    return app


class HealthView(View):
    status: Literal["ok"] = "ok"


class ReadyView(View):
    status: Literal["ready", "not ready"]
    reasons: list[str]
    """What is wrong, for people."""


def _health(app: FastAPI, readiness: Readiness) -> None:
    @app.get("/healthz", tags=["health"])
    def healthz() -> HealthView:
        """Whether the process responds."""
        return HealthView()

    @app.get(
        "/readyz", tags=["health"], responses={503: {"model": ReadyView, "description": "A dependency is unreachable."}}
    )
    def readyz(response: Response) -> ReadyView:
        """Whether all dependencies of jobs are reachable and the controller makes progress; 503 with reasons if not."""
        reasons = readiness.reasons()
        response.status_code = 503 if reasons else 200
        return ReadyView(status="not ready" if reasons else "ready", reasons=reasons)


def _docs(app: FastAPI) -> None:
    """Serves Swagger UI from an installed package: FastAPI's own page loads it from a CDN."""
    package = find_spec("flask_swagger_ui")  # only for its files: Flask is not imported
    if package is None or not package.submodule_search_locations:
        raise ImportError("Swagger UI is missing: install flask-swagger-ui")
    assets = Path(package.submodule_search_locations[0]) / "dist"
    app.mount(DOCS_ASSETS, StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="rcmae",
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{DOCS_ASSETS}/favicon-32x32.png",
            swagger_ui_parameters={"validatorUrl": None},
        )

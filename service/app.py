"""The HTTP application: `uvicorn --factory service.app:create_app`."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Final

import structlog
from fastapi import FastAPI
from sqlalchemy.exc import DataError

from service.access.audit import AuditLog
from service.access.open_responses import OpenResponses
from service.access.refusals import Refusals
from service.access.routes import router as access
from service.access.uses import Uses
from service.adapters.breaker import Unreachable
from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.adapters.storage import Artifacts, OutsideRoot
from service.adapters.studies import Studies
from service.api_description import API
from service.auth.caller import ensure_admin
from service.backbones.approval_routes import router as approvals
from service.backbones.comparison_routes import router as comparison
from service.backbones.hub import routes as hub
from service.backbones.hub.refusals import problem_headers
from service.backbones.retention_routes import router as retention
from service.backbones.routes import router as backbones
from service.backbones.signature_routes import router as signatures
from service.backbones.use_routes import router as use
from service.cluster.routes import router as cluster
from service.context.app_state import AppState
from service.context.gates import gated
from service.controller.context import ControllerContext
from service.controller.lease import Lease
from service.controller.loop import Reconciler
from service.counters import registry_of
from service.dashboard import mount
from service.db.database import Database, DatabaseUnreachable
from service.evaluations.routes import router as evaluations
from service.http import docs, handlers, openapi
from service.http.failures import Buckets
from service.http.head import HeadAsGet
from service.http.headers import KnownHosts, ProtectiveHeaders
from service.http.limits import BodyTooLarge, body_too_large
from service.http.problems import ApiProblem, Problems, unavailable
from service.http.ranges import Downloads
from service.http.routing import TextRefused, text_refused
from service.jobs.changes import Changes
from service.jobs.routes import metrics_router, stream_router
from service.jobs.routes import router as jobs
from service.jobs.stream import Streams
from service.kinds.registry import KINDS
from service.observability.collector import ServiceCollector
from service.observability.readiness import Readiness
from service.observability.requests import RequestMetrics
from service.observability.routes import router as monitoring
from service.observability.shared_work import SharedWork
from service.searches.plots import Plots
from service.searches.routes import router as searches
from service.settings import Settings
from service.webhooks.routes import router as webhooks

log = structlog.get_logger()

PROBLEMS: Final = Problems(
    {
        BodyTooLarge: body_too_large,
        TextRefused: text_refused,
        Unreachable: lambda error: unavailable(error.dependency, error, error.retry_after_s),
        DatabaseUnreachable: lambda error: unavailable("the database", error),
        OutsideRoot: lambda error: ApiProblem(
            404,
            "artifacts_not_here",
            f"{error}: the artifact root has changed since then, and files elsewhere are never served",
        ),
        DataError: lambda error: ApiProblem(
            422, "parameter_invalid", f"the database cannot store a value of the request: {error.orig}"
        ),
    },
    headers_below={f"{hub.PREFIX}/": problem_headers},
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
    app = build_app(state.settings.body_limit_bytes)
    attach(app, state, reconciler if state.settings.reconcile else None)
    return app


def build_app(body_limit_bytes: int) -> FastAPI:
    """All routes, middleware and exception handlers; `attach` gives them what they work with."""
    app = FastAPI(title="rcmae", version=version("rcmae"), lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(HeadAsGet)  # the middleware added last is the outermost
    app.add_middleware(OpenResponses)
    app.add_middleware(AuditLog)
    app.add_middleware(KnownHosts)
    handlers.install(app, PROBLEMS, body_limit_bytes)
    app.add_middleware(ProtectiveHeaders)
    app.add_middleware(RequestMetrics)
    openapi.install(app, API)
    app.include_router(monitoring)
    app.include_router(jobs)
    app.include_router(metrics_router)
    app.include_router(stream_router)
    app.include_router(searches)
    app.include_router(signatures)  # before the route of all other files
    app.include_router(retention)
    app.include_router(backbones)
    app.include_router(approvals)
    app.include_router(comparison)
    app.include_router(use)
    app.include_router(evaluations)
    app.include_router(hub.router)
    app.include_router(cluster)
    app.include_router(access)
    app.include_router(webhooks)
    mount.install(app)
    app.include_router(hub.no_route)
    docs.install(app)
    return app


def attach(app: FastAPI, state: AppState, own_reconciler: Reconciler | None) -> None:
    """Give an application the state that its requests work with, and the reconciler of its process, if it has one.

    The reconciler and the readiness probes reach the dependencies past the gates of requests.
    """
    streams, requests_state = Streams(), gated(state)
    app.state.app_state, app.state.own_reconciler = requests_state, own_reconciler
    app.state.streams, app.state.changes = streams, Changes(state.database, streams)
    app.state.plots = Plots(requests_state.studies)
    app.state.downloads = Downloads()
    app.state.failures, app.state.refusals = Buckets(state.settings.failures_per_minute), Refusals()
    app.state.uses = Uses()
    app.state.readiness, app.state.probes = Readiness(state, own_reconciler), SharedWork()
    app.state.metrics, app.state.scrapes = registry_of(ServiceCollector(state, own_reconciler)), SharedWork()


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: AppState = app.state.app_state
    reconciler: Reconciler | None = app.state.own_reconciler
    state.database.migrate()
    if state.settings.admin_token_file:
        ensure_admin(state.database, state.settings.admin_token_file)
    if reconciler:
        reconciler.start()
    # Objects that exist by now are permanent: scanning them blocked requests for 180 ms.
    gc.freeze()
    log.info("service_started", version=version("rcmae"))
    with app.state.streams.closed_by_signals():
        yield
    gc.unfreeze()
    if reconciler:
        reconciler.stop()
    close(state)
    log.info("service_ended")

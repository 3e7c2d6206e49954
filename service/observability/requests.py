"""Every request counted, timed and logged; `/metrics`."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context.app_state import AppState
from service.controller.loop import Reconciler
from service.counters import REQUEST_SECONDS, REQUESTS, STREAMS, exposition, registry_of
from service.observability.collector import ServiceCollector
from trainer.spec.masking import masked

log = structlog.get_logger()

UNMATCHED: Final = "unmatched"
"""The route of what no route is for: any number of paths, one label."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ASKED_ALL_THE_TIME: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""By machines, every few seconds: not logged while all is well."""


class Requests:
    """Around the whole application: an answer from whichever part of it is one of them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                passed = time.perf_counter() - begin
                REQUEST_SECONDS.labels(_method(scope), _route(scope), f"{status // 100}xx").observe(passed)
            await send(message)

        with REQUESTS.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                _tell(scope, status, time.perf_counter() - begin)


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """One line when a request is over; without a status the client had left before there was one."""
    route, state = _route(scope), scope.get("state", {})
    if route in ASKED_ALL_THE_TIME and status == 200:
        return
    trail, job_id = state.get("trail"), scope.get("path_params", {}).get("job_id")
    told: dict[str, Any] = {
        "request_id": state.get("id"),
        "owner": trail.actor if trail else None,
        "job_id": masked(job_id)[:32] if job_id else None,
    }
    told = {name: value for name, value in told.items() if value is not None}
    log.info("request", method=_method(scope), route=route, status=status or None, duration_s=round(seconds, 4), **told)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    """The template of the route that took it, such as ``/v1/jobs/{job_id}``."""
    return getattr(scope.get("route"), "path", None) or UNMATCHED


def install(app: FastAPI, parts: AppState, reconciler: Reconciler | None) -> None:
    """Watch every request, and answer `/metrics`, to everybody as `/healthz` is."""
    app.add_middleware(Requests)
    registry = registry_of(ServiceCollector(parts, reconciler))

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics(request: Request) -> Response:
        """What the service counts and measures, for Prometheus: its text or OpenMetrics, by `Accept`."""
        STREAMS.set(app.state.streams.readers)  # on the event loop, where readers come and go
        body, content_type = await run_in_threadpool(exposition, registry, request.headers.get("Accept", ""))
        return Response(body, media_type=content_type)

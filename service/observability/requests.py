"""Counts, times and logs every request."""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
from starlette.types import Message, Receive, Scope, Send

from service.counters import REQUEST_SECONDS, REQUESTS
from service.http.middleware import HttpMiddleware
from trainer.spec.masking import masked

log = structlog.get_logger()

UNMATCHED: Final = "unmatched"
"""The route label of all requests that match no route, so that unknown paths do not create labels."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
POLLED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Routes that machines poll every few seconds. They are logged only if they fail."""


class RequestMetrics(HttpMiddleware):
    """ASGI middleware around the whole application, which measures and logs all responses."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 0

        async def send_measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed = time.perf_counter() - start
                REQUEST_SECONDS.labels(_method(scope), _route(scope), f"{status // 100}xx").observe(elapsed)
            await send(message)

        with REQUESTS.track_inprogress():
            try:
                await self._app(scope, receive, send_measured)
            finally:
                _log_request(scope, status, time.perf_counter() - start)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    """Logs one line when a request is over. A status of 0 means that the client left before the response began."""
    route, state = _route(scope), scope.get("state", {})
    if route in POLLED and status == 200:
        return
    trail, job_id = state.get("trail"), scope.get("path_params", {}).get("job_id")
    fields: dict[str, Any] = {
        "request_id": state.get("id"),
        "owner": trail.actor if trail else None,
        "job_id": masked(job_id)[:32] if job_id else None,
    }
    known = {name: value for name, value in fields.items() if value is not None}
    duration_s = round(seconds, 4)
    log.info("request", method=_method(scope), route=route, status=status or None, duration_s=duration_s, **known)


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def _route(scope: Scope) -> str:
    """The path template of the matched route, such as ``/v1/jobs/{job_id}``."""
    return getattr(scope.get("route"), "path", None) or UNMATCHED

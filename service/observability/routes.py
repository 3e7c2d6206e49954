"""What monitors read, without a token: `/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry

from service.counters import STREAMS, exposition
from service.http.routing import ApiRoute
from service.http.schemas import View
from service.observability.readiness import Readiness

router = APIRouter(tags=["health"], route_class=ApiRoute)


class HealthView(View):
    status: Literal["ok"] = "ok"


class ReadyView(View):
    status: Literal["ready", "not ready"]
    reasons: list[str]
    """What is wrong, for people."""


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """The service's metrics, in Prometheus' text format or OpenMetrics, depending on `Accept`."""
    state = request.app.state
    STREAMS.set(state.streams.readers)  # on the event loop, where readers are added and removed
    registry: CollectorRegistry = state.metrics
    body, content_type = await run_in_threadpool(exposition, registry, request.headers.get("Accept", ""))
    return Response(body, media_type=content_type)


@router.get("/healthz")
def healthz() -> HealthView:
    """Whether the process responds."""
    return HealthView()


@router.get("/readyz", responses={503: {"model": ReadyView, "description": "A dependency is unreachable."}})
def readyz(request: Request, response: Response) -> ReadyView:
    """Whether all dependencies of jobs are reachable and the controller makes progress; 503 with reasons if not."""
    readiness: Readiness = request.app.state.readiness
    reasons = readiness.reasons()
    response.status_code = 503 if reasons else 200
    return ReadyView(status="not ready" if reasons else "ready", reasons=reasons)

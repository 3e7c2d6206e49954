"""What monitors read, without a token: `/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
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
    accept = request.headers.get("Accept", "")
    body, content_type = await state.scrapes.result(accept, lambda: exposition(registry, accept))
    return Response(body, media_type=content_type)


@router.get("/healthz")
async def healthz() -> HealthView:
    """Whether the process responds. It needs no thread, so it responds while every thread waits for something."""
    return HealthView()


@router.get("/readyz", responses={503: {"model": ReadyView, "description": "A dependency is unreachable."}})
async def readyz(request: Request, response: Response) -> ReadyView:
    """Whether all dependencies of jobs are reachable and the controller makes progress; 503 with reasons if not."""
    state = request.app.state
    readiness: Readiness = state.readiness
    reasons: list[str] = await state.probes.result("", readiness.reasons)
    response.status_code = 503 if reasons else 200
    return ReadyView(status="not ready" if reasons else "ready", reasons=reasons)

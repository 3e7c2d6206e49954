"""The machines, what runs on them, and who waits."""

from __future__ import annotations

from collections import Counter
from typing import Final

from fastapi import APIRouter, Response

from service.cluster import service
from service.cluster.schemas import ClusterView, RunningView
from service.dashboard.site import PageDep, PageRoute
from service.jobs import reading
from service.jobs.repository import Filters
from service.jobs.schemas import State

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50


@router.get("/cluster")
def show(page: PageDep) -> Response:
    """Nodes with what is used of them, running jobs, and the queue; what waits is told without Ray too."""
    found, trouble = page.attempt(lambda: service.show(page.parts, page.caller))
    waiting = Filters(state=(State.QUEUED, State.RECOVERING), visible_to=page.caller)
    return page.render(
        "cluster/show.html",
        cluster=found,
        trouble=trouble,
        on=_on(found) if found else {},
        waiting=reading.listing(page.parts, waiting, PAGE, None).items if trouble else [],
    )


def _on(cluster: ClusterView) -> dict[str, list[tuple[RunningView, int]]]:
    """By node, the jobs that run there with how many of their workers."""
    found: dict[str, list[tuple[RunningView, int]]] = {}
    for job in cluster.running:
        for node, workers in Counter(job.nodes).items():
            found.setdefault(node, []).append((job, workers))
    return found

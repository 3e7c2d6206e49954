"""The cluster page: nodes, running jobs and the queue."""

from __future__ import annotations

from collections import Counter
from typing import Final

from fastapi import APIRouter, Response

from service.cluster import service
from service.cluster.schemas import ClusterView, RunningView
from service.dashboard.site import ClusterPage, PageRoute
from service.jobs import reading
from service.jobs.listing import Filters
from service.jobs.state import State

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50


@router.get("/cluster")
def show(page: ClusterPage) -> Response:
    """Nodes with their usage, running jobs, and the queue. Waiting jobs are listed even if Ray is unreachable."""
    found, trouble = page.attempt(lambda: service.show(page.state, page.caller))
    waiting = Filters(state=(State.QUEUED, State.RECOVERING), visible_to=page.caller)
    return page.render(
        "cluster/show.html",
        cluster=found,
        trouble=trouble,
        jobs_by_node=_jobs_by_node(found) if found else {},
        waiting=reading.listing(page.state, waiting, PAGE, None).items if trouble else [],
    )


def _jobs_by_node(cluster: ClusterView) -> dict[str, list[tuple[RunningView, int]]]:
    """The jobs that run on each node, with the number of their workers there."""
    jobs: dict[str, list[tuple[RunningView, int]]] = {}
    for job in cluster.running:
        for node, workers in Counter(job.nodes).items():
            jobs.setdefault(node, []).append((job, workers))
    return jobs

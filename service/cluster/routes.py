"""The cluster route."""

from __future__ import annotations

from fastapi import APIRouter

from service.cluster import service
from service.cluster.schemas import ClusterView
from service.context.app_state import MayReadCluster, StateDep
from service.http.routing import ApiRoute

router = APIRouter(prefix="/v1/cluster", tags=["cluster"], route_class=ApiRoute)


@router.get("")
def show(state: StateDep, caller: MayReadCluster) -> ClusterView:
    """Nodes with their used and free resources, running jobs with what they hold, and the queue with the reason each
    job waits, as the controller decides it.
    """
    return service.show(state, caller)

"""The cluster's route."""

from __future__ import annotations

from fastapi import APIRouter

from service.cluster import service
from service.cluster.schemas import ClusterView
from service.context.app_state import CallerDep, StateDep

router = APIRouter(prefix="/v1/cluster", tags=["cluster"])


@router.get("")
def show(parts: StateDep, caller: CallerDep) -> ClusterView:
    """Nodes with what is used and free of them, running jobs with what they hold, and the queue with what each waits
    for, as the controller decides.
    """
    return service.show(parts, caller)

"""The route of comparisons. It is not below `/v1/backbones`, where any other word is the name of a backbone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.backbones import comparison
from service.backbones.comparison_schemas import ComparisonView
from service.context.app_state import MayReadBackbones, StateDep
from service.http.routing import ApiRoute

router = APIRouter(prefix="/v1", tags=["backbones"], route_class=ApiRoute)

Compared = Annotated[str, Query(max_length=600, description="`name`, `name:3`, `name:latest` or `name@champion`")]
Other = Annotated[
    str, Query(alias="with", max_length=600, description="the version to compare it with, named likewise")
]


@router.get("/backbone-comparison")
def compare(of: Compared, other: Other, state: StateDep, caller: MayReadBackbones) -> ComparisonView:
    """Two versions side by side: what differs between their specs, results, sizes, curves and pictures.

    A version whose files are gone, or that has a file too large to compare, is compared by what is known of it.
    """
    return comparison.compare(state, caller, of, other)

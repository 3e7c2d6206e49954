"""Routes of retention rules."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.backbones import retention
from service.backbones.retention_schemas import RetentionBody, RetentionView
from service.context.app_state import MayChangeBackbones, MayReadBackbones, StateDep
from service.http.routing import ApiRoute

router = APIRouter(prefix="/v1/backbones", tags=["backbones"], route_class=ApiRoute)


@router.get("/{name}/retention")
def show(name: str, state: StateDep, caller: MayReadBackbones) -> RetentionView:
    """The retention rule of a backbone, and what it does with each version; without a rule all stay."""
    return retention.show(state, caller, name)


@router.put("/{name}/retention")
def put(
    name: str,
    body: RetentionBody,
    state: StateDep,
    caller: MayChangeBackbones,
    preview: Annotated[bool, Query(description="report what the rule would do, without setting it")] = False,
) -> RetentionView:
    """Set the rule by which versions are deleted, and report what it does with each.

    Named versions, `main`, the newest, those of jobs that have not ended and those that are gone in MLflow always stay.
    Nothing goes within a day of the first announcement in `expires_at`. What people read through
    MLflow, straight from the artifact storage or from a client's cache is not counted as a download.
    """
    if preview:
        caller.changes_nothing()
        return retention.preview(state, caller, name, body)
    return retention.put(state, caller, name, body)


@router.delete("/{name}/retention")
def remove(name: str, state: StateDep, caller: MayChangeBackbones) -> RetentionView:
    """Remove the rule: nothing is deleted by itself any more. 404 if there is none."""
    return retention.remove(state, caller, name)

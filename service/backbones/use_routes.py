"""Routes of use and space."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from service.backbones import service, space
from service.backbones.use_schemas import OwnerSpaceView, VersionUserView
from service.context.app_state import MayChangeBackbones, StateDep
from service.http.routing import ApiRoute
from service.http.schemas import Page

router = APIRouter(prefix="/v1", tags=["backbones"], route_class=ApiRoute)

Reference = Annotated[str, Path(description="a number, `latest`, `main`, an alias or a commit")]


@router.get("/backbones/{name}/versions/{version}/users")
def users(name: str, version: Reference, state: StateDep, caller: MayChangeBackbones) -> Page[VersionUserView]:
    """Who has used a version, whoever did last first, on one page: for those who may delete it."""
    return Page[VersionUserView](items=service.users(state, caller, name, version))


@router.get("/backbone-space")
def backbone_space(state: StateDep, caller: MayChangeBackbones) -> Page[OwnerSpaceView]:
    """What the backbones of each owner take in the artifact storage, the most first, on one page.

    These are the caller's own, or everybody's for those who may change everybody's backbones.
    """
    return Page[OwnerSpaceView](items=space.by_owner(state, caller))

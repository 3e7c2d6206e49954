"""Routes of the rule for a backbone's champion, and of the history of its aliases."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.backbones import approvals
from service.backbones.approval_schemas import AliasMoveView, ChampionCheckView, ChampionRuleBody
from service.backbones.schemas import LARGEST, BackboneDetailView
from service.context.app_state import MayChangeBackbones, MayReadBackbones, StateDep
from service.http.routing import ApiRoute
from service.http.schemas import Page

router = APIRouter(prefix="/v1/backbones", tags=["backbones"], route_class=ApiRoute)


@router.get("/{name}/alias-moves")
def alias_moves(
    name: str,
    state: StateDep,
    caller: MayReadBackbones,
    alias: Annotated[str | None, Query(description="only this alias")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: str | None = None,
) -> Page[AliasMoveView]:
    """Who set, moved and removed the aliases of a backbone, when and why; newest first."""
    return approvals.moves(state, caller, name, alias, limit, cursor)


@router.get("/{name}/champion-check")
def champion_check(
    name: str, version: Annotated[int, Query(ge=1, le=LARGEST)], state: StateDep, caller: MayReadBackbones
) -> ChampionCheckView:
    """Whether you may make a version the champion now, and everything that speaks against it. Nothing changes."""
    return approvals.check(state, caller, name, version)


@router.put("/{name}/champion-rule")
def set_champion_rule(
    name: str, body: ChampionRuleBody, state: StateDep, caller: MayChangeBackbones
) -> BackboneDetailView:
    """Replace the rule for a backbone's champion as a whole. The present champion stays, whether it meets it or not."""
    return approvals.set_rule(state, caller, name, body)


@router.delete("/{name}/champion-rule")
def remove_champion_rule(name: str, state: StateDep, caller: MayChangeBackbones) -> BackboneDetailView:
    """Remove the rule for a backbone's champion."""
    return approvals.remove_rule(state, caller, name)

"""Routes of tokens and of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.access import service
from service.access.repository import AuditFilters
from service.access.schemas import AuditView, NewTokenView, RotateBody, TokenBody, TokenView
from service.context.app_state import MayManageTokens, MayReadAudit, MayReadTokens, StateDep
from service.http.routing import ApiRoute
from service.http.schemas import Moment, Page

router = APIRouter(prefix="/v1", tags=["access"], route_class=ApiRoute)

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/tokens")
def tokens(
    state: StateDep,
    caller: MayReadTokens,
    owner: str | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[TokenView]:
    """Your own tokens, or all tokens for admins; newest first, expired and revoked ones included."""
    return service.tokens(state, caller, owner, limit, cursor)


@router.post("/tokens", status_code=201)
def create_token(body: TokenBody, state: StateDep, caller: MayManageTokens) -> NewTokenView:
    """Create a token. Its text is in this response and nowhere else.

    Admins create tokens for anybody, submitters and operators for themselves. A new token may neither do nor see more
    than the token that creates it: submitters create only submitter tokens. Unless an admin creates it, it expires no
    later either.
    """
    return service.create_token(state, caller, body)


@router.post("/tokens/{token_id}/rotate", status_code=201)
def rotate_token(
    token_id: str, state: StateDep, caller: MayManageTokens, body: RotateBody | None = None
) -> NewTokenView:
    """Replace a token with a new one of the same owner, role, name and expiry. The old one ends at once or after a
    grace period.

    The caller must be allowed to create a token of its role: a submitter cannot replace a viewer token.
    """
    return service.rotate_token(state, caller, token_id, body or RotateBody())


@router.delete("/tokens/{token_id}")
def revoke_token(token_id: str, state: StateDep, caller: MayManageTokens) -> TokenView:
    """Revoke a token at once, on every replica. The last admin token without an expiry cannot be revoked."""
    return service.revoke_token(state, caller, token_id)


@router.get("/audit")
def audit(
    state: StateDep,
    caller: MayReadAudit,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    after: Moment | None = None,
    before: Moment | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[AuditView]:
    """Every requested change, done or refused, newest first. For admins."""
    return service.audit(state, caller, AuditFilters(actor, action, target, after, before), limit, cursor)

"""Routes of tokens and of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.access import service
from service.access.repository import AuditFilters
from service.access.schemas import AuditView, NewTokenView, RotateBody, TokenBody, TokenView
from service.context.app_state import CallerDep, StateDep
from service.http.schemas import Moment, Page

router = APIRouter(prefix="/v1", tags=["access"])

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/tokens")
def tokens(
    parts: StateDep,
    caller: CallerDep,
    owner: str | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[TokenView]:
    """Tokens, newest first, also those that have ended: one's own, and for admins everybody's."""
    return service.tokens(parts, caller, owner, limit, cursor)


@router.post("/tokens", status_code=201)
def create_token(body: TokenBody, parts: StateDep, caller: CallerDep) -> NewTokenView:
    """Make a token. Its text is in this answer and nowhere else.

    Admins make tokens for everybody, submitters and operators for themselves. A new token may neither do nor see more
    than the one that makes it, and unless that is an admin's it ends no later: submitters make only submitters' tokens.
    """
    return service.create_token(parts, caller, body)


@router.post("/tokens/{token_id}/rotate", status_code=201)
def rotate_token(token_id: str, parts: StateDep, caller: CallerDep, body: RotateBody | None = None) -> NewTokenView:
    """Replace a token by a new one of the same owner, role, name and end. The old one ends at once or after a grace.

    Only tokens of a role that the caller could make: a submitter cannot replace a viewer's token.
    """
    return service.rotate_token(parts, caller, token_id, body or RotateBody())


@router.delete("/tokens/{token_id}")
def revoke_token(token_id: str, parts: StateDep, caller: CallerDep) -> TokenView:
    """End a token at once, on every replica. The last admin's token that is left cannot be revoked."""
    return service.revoke_token(parts, caller, token_id)


@router.get("/audit")
def audit(
    parts: StateDep,
    caller: CallerDep,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    after: Moment | None = None,
    before: Moment | None = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[AuditView]:
    """Every change that was asked for, done or refused, newest first. For admins."""
    return service.audit(parts, caller, AuditFilters(actor, action, target, after, before), limit, cursor)

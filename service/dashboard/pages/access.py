"""Pages of tokens and of the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from service.access import service
from service.access.repository import AuditFilters
from service.access.schemas import LONGEST_DAYS, TokenView
from service.auth.scopes import Scope, described, grantable, revocable
from service.auth.trail import ACTIONS, EXPIRE
from service.dashboard.site import AuditPage, Page, PageRoute, TokensPage

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
GRACES: Final = {0: "at once", 600: "after 10 minutes", 3600: "after an hour", 86_400: "after a day"}
"""Choices of how long a replaced token stays valid, by seconds."""
Time = datetime | Literal[""] | None


@router.get("/tokens")
def tokens(page: TokensPage, owner: str | None = None, cursor: str | None = None) -> Response:
    """The caller's own tokens; for admins, all tokens."""
    found = service.tokens(page.state, page.caller, owner or None, PAGE, cursor)
    return page.render(
        "access/tokens.html",
        found=found,
        owner=owner or "",
        roles={role: described(role) for role in grantable(page.caller.role)},
        replaceable={each.id for each in found.items if _may_replace(page, each)},
        revocable={each.id for each in found.items if _may_revoke(page, each)},
        graces=GRACES,
        longest=LONGEST_DAYS,
    )


def _may_replace(page: Page, token: TokenView) -> bool:
    """Whether the caller may rotate a token, by the same rules as the service's."""
    return _may_revoke(page, token) and token.role in grantable(page.caller.role)


def _may_revoke(page: Page, token: TokenView) -> bool:
    """Whether the caller may revoke a token, by the same rules as the service's."""
    in_reach = page.caller.may(Scope.TOKENS, token.owner) and token.role in revocable(page.caller.role)
    return in_reach and token.state == "active"


@router.get("/audit")
def audit(
    page: AuditPage,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    after: Annotated[Time, Query()] = None,
    before: Annotated[Time, Query()] = None,
    cursor: str | None = None,
) -> Response:
    """The audit log. Times without a zone are UTC."""
    values = (actor or None, action or None, target or None)
    filters = AuditFilters(*values, _utc(after), _utc(before))
    found = service.audit(page.state, page.caller, filters, PAGE, cursor)
    filtered = any((*values, after, before))
    actions = sorted({*ACTIONS.values(), EXPIRE})
    return page.render("access/audit.html", found=found, actions=actions, filtered=filtered)


def _utc(moment: Time) -> datetime | None:
    if not moment:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

"""Pages of webhooks: the list, and one webhook with the log of its deliveries."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Response

from service.auth.scopes import Scope
from service.dashboard.site import PageRoute, WebhooksPage
from service.db.tables import now
from service.events.types import MEANINGS
from service.webhooks import service

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
SOON: Final = timedelta(minutes=1)
"""A page with a delivery that is due within this is brought up to date every few seconds."""


@router.get("/webhooks")
def webhooks(page: WebhooksPage, owner: str | None = None, cursor: str | None = None) -> Response:
    """The caller's own webhooks; for admins, all webhooks."""
    found = service.webhooks(page.state, page.caller, owner or None, PAGE, cursor)
    everybodys = page.caller.has(Scope.READ_WEBHOOKS)
    return page.render("webhooks/list.html", found=found, owner=owner or "", everybodys=everybodys, events=MEANINGS)


@router.get("/webhooks/{webhook_id}")
def webhook(page: WebhooksPage, webhook_id: str, cursor: str | None = None) -> Response:
    """One webhook with what was sent to it."""
    shown = service.show(page.state, page.caller, webhook_id)
    log = service.deliveries(page.state, page.caller, webhook_id, PAGE, cursor)
    soon = any(each.next_attempt_at and each.next_attempt_at < now() + SOON for each in log.items)
    changes = page.caller.may(Scope.WEBHOOKS, shown.owner)
    return page.render("webhooks/one.html", webhook=shown, log=log, soon=soon, changes=changes, events=MEANINGS)

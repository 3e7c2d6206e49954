"""Tells webhooks what has happened: a row for each delivery, in the transaction that makes the change.

So nothing is lost, and nothing is told that did not happen. The controller sends the deliveries.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from service.auth.caller import has_valid_token
from service.auth.scopes import Scope, roles_with
from service.db.tables import Webhook, WebhookDelivery, now
from service.events.types import EventType


def emit(session: Session, event: EventType, data: Mapping[str, Any], *, backbone: str | None = None) -> None:
    """Tell all webhooks that want it of an event, once the transaction commits.

    ``data`` is what receivers get, and must hold no secret; `urls` in it are paths on this service. ``backbone`` names
    the backbone that the event is about: webhooks for some backbones hear of no other event. Webhooks whose owner may
    have none any more hear of nothing.
    """
    moment = now()
    for webhook in session.scalars(select(Webhook).where(Webhook.enabled, may_be_told())):
        if _wants(webhook, event, backbone):
            session.add(delivery(webhook, event.value, data, moment))


def may_be_told() -> ColumnElement[bool]:
    """Whether a webhook's owner still has a valid token that may have webhooks."""
    return has_valid_token(Webhook.owner, roles_with([Scope.OWN_WEBHOOKS]))


def delivery(webhook: Webhook, kind: str, data: Mapping[str, Any], moment: datetime) -> WebhookDelivery:
    """A delivery to a webhook that is due at once."""
    return WebhookDelivery(webhook_id=webhook.id, type=kind, data=dict(data), created_at=moment, next_attempt_at=moment)


def _wants(webhook: Webhook, event: EventType, backbone: str | None) -> bool:
    of_interest = webhook.events is None or event.value in webhook.events
    return of_interest and (webhook.backbones is None or backbone in webhook.backbones)

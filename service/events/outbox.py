"""Tells webhooks what has happened: a row for each delivery, in the transaction that makes the change.

So nothing is lost, and nothing is told that did not happen. The controller sends the deliveries.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Exists, delete, literal, not_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.auth.caller import Caller, has_valid_token
from service.auth.scopes import Scope, roles_with
from service.auth.sight import seen, seen_by
from service.db.tables import RegisteredBackbone, Webhook, WebhookDelivery, now
from service.events.types import EventType


def emit(session: Session, event: EventType, data: Mapping[str, Any], *, backbone: str | None = None) -> None:
    """Tell all webhooks that want it of an event, once the transaction commits.

    ``data`` is what receivers get, and must hold no secret; `urls` in it are paths on this service. ``backbone`` names
    the backbone that the event is about, whose row must still be there: a webhook hears of no backbone that its owner
    does not see, and one for some backbones of no other event. Webhooks whose owner may have none any more hear of
    nothing.
    """
    moment = now()
    query = select(Webhook).where(Webhook.enabled, may_be_told())
    if backbone is not None:
        query = query.where(_backbone(literal(backbone), seen_by(Webhook.owner)))
    for webhook in session.scalars(query):
        if _wants(webhook, event, backbone):
            session.add(delivery(webhook, event.value, data, moment, backbone))


def forget_unseen(session: Session, backbone: str) -> None:
    """Delete the deliveries about a backbone to those who do not see it, before its row goes: only the row says so."""
    row = WebhookDelivery
    unseen = select(row.id).join(Webhook, Webhook.id == row.webhook_id).where(row.backbone == backbone)
    deleted = delete(row).where(row.id.in_(unseen.where(not_(still_seen()))))
    session.execute(deleted, execution_options={"synchronize_session": False})


def may_be_told() -> ColumnElement[bool]:
    """Whether a webhook's owner still has a valid token that may have webhooks."""
    return has_valid_token(Webhook.owner, roles_with([Scope.OWN_WEBHOOKS]))


def still_seen() -> ColumnElement[bool]:
    """Whether a webhook's owner still sees the backbone that a delivery to it is about."""
    return _about_nothing_hidden(seen_by(Webhook.owner))


def seen_deliveries(caller: Caller) -> list[ColumnElement[bool]]:
    """What each delivery meets that is about no backbone which a caller does not see."""
    return [_about_nothing_hidden(condition) for condition in seen(caller)]


def _about_nothing_hidden(is_seen: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a delivery is about a backbone that is seen, or about one that is gone or none at all.

    Of a backbone that is gone, those are left whose webhook's owner saw it then: see `forget_unseen`.
    """
    return not_(_backbone(WebhookDelivery.backbone, not_(is_seen)))


def _backbone(name: ColumnElement[str] | InstrumentedAttribute[str | None], condition: ColumnElement[bool]) -> Exists:
    query = select(RegisteredBackbone.name).where(RegisteredBackbone.name == name, condition)
    return query.correlate_except(RegisteredBackbone).exists()


def delivery(
    webhook: Webhook, kind: str, data: Mapping[str, Any], moment: datetime, backbone: str | None = None
) -> WebhookDelivery:
    """A delivery to a webhook that is due at once."""
    return WebhookDelivery(
        webhook_id=webhook.id,
        type=kind,
        data=dict(data),
        backbone=backbone,
        created_at=moment,
        next_attempt_at=moment,
    )


def _wants(webhook: Webhook, event: EventType, backbone: str | None) -> bool:
    of_interest = webhook.events is None or event.value in webhook.events
    return of_interest and (webhook.backbones is None or backbone in webhook.backbones)

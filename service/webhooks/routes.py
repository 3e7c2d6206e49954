"""Routes of webhooks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.context.app_state import MayManageWebhooks, MayReadWebhooks, StateDep
from service.http.routing import ApiRoute
from service.http.schemas import Page
from service.webhooks import service
from service.webhooks.schemas import DeliveryView, NewWebhookView, WebhookBody, WebhookPatch, WebhookView

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=ApiRoute)

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("")
def webhooks(
    state: StateDep, caller: MayReadWebhooks, owner: str | None = None, limit: Limit = 50, cursor: str | None = None
) -> Page[WebhookView]:
    """Your own webhooks, or all webhooks for admins; newest first."""
    return service.webhooks(state, caller, owner, limit, cursor)


@router.post("", status_code=201)
def create_webhook(body: WebhookBody, state: StateDep, caller: MayManageWebhooks) -> NewWebhookView:
    """Create a webhook. The secret of its signatures is in this response and nowhere else.

    Deliveries are signed as in Standard Webhooks: receivers verify them with that secret.
    """
    return service.create(state, caller, body)


@router.get("/{webhook_id}")
def webhook(webhook_id: str, state: StateDep, caller: MayReadWebhooks) -> WebhookView:
    """One webhook, with how its last delivery went."""
    return service.show(state, caller, webhook_id)


@router.patch("/{webhook_id}")
def change_webhook(webhook_id: str, body: WebhookPatch, state: StateDep, caller: MayManageWebhooks) -> WebhookView:
    """Change a webhook, or enable or disable it. Deliveries that wait when it is disabled fail."""
    return service.change(state, caller, webhook_id, body)


@router.delete("/{webhook_id}")
def delete_webhook(webhook_id: str, state: StateDep, caller: MayManageWebhooks) -> WebhookView:
    """Delete a webhook with its deliveries, those that wait included."""
    return service.remove(state, caller, webhook_id)


@router.post("/{webhook_id}/rotate", status_code=201)
def rotate_webhook(webhook_id: str, state: StateDep, caller: MayManageWebhooks) -> NewWebhookView:
    """Give a webhook a new secret, which is in this response and nowhere else.

    For a day, deliveries have two signatures, with the new secret and with the one before. A second rotation ends the
    first secret at once.
    """
    return service.rotate(state, caller, webhook_id)


@router.post("/{webhook_id}/test", status_code=201)
def test_webhook(webhook_id: str, state: StateDep, caller: MayManageWebhooks) -> DeliveryView:
    """Send a delivery of the type `webhook.test`, also to a disabled webhook. There is one attempt.

    The controller sends it at once: ask for the delivery until its state is no longer `waiting`.
    """
    return service.test(state, caller, webhook_id)


@router.get("/{webhook_id}/deliveries")
def deliveries(
    webhook_id: str, state: StateDep, caller: MayReadWebhooks, limit: Limit = 50, cursor: str | None = None
) -> Page[DeliveryView]:
    """What was sent to a webhook, or waits for it; newest first. The last 1000 are kept, for 30 days."""
    return service.deliveries(state, caller, webhook_id, limit, cursor)


@router.get("/{webhook_id}/deliveries/{delivery_id}")
def delivery(webhook_id: str, delivery_id: str, state: StateDep, caller: MayReadWebhooks) -> DeliveryView:
    """One delivery."""
    return service.delivery(state, caller, webhook_id, delivery_id)


@router.post("/{webhook_id}/deliveries/{delivery_id}/retry")
def retry_delivery(webhook_id: str, delivery_id: str, state: StateDep, caller: MayManageWebhooks) -> DeliveryView:
    """Send a delivery now, with the same id: one that waits before its time, or one that has ended once more."""
    return service.retry(state, caller, webhook_id, delivery_id)

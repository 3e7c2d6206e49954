"""Operations on webhooks. A request is one transaction; the controller sends what these leave to be sent."""

from __future__ import annotations

import base64
import secrets
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from service.adapters import receivers
from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.context.app_state import AppState
from service.db.tables import Webhook, WebhookDelivery, now
from service.events.outbox import delivery as new_delivery
from service.events.types import TEST
from service.http.problems import ApiProblem, not_found, spec_problem
from service.http.schemas import Page
from service.webhooks import repository
from service.webhooks.schemas import (
    DeliveryState,
    DeliveryView,
    NewWebhookView,
    WebhookBody,
    WebhookPatch,
    WebhookView,
)
from trainer.spec.base import Problem

PREFIX: Final = "whsec_"
"""The prefix of every secret, by which scanners for leaked secrets recognise it."""
SECRET_BYTES: Final = 32
ROTATION: Final = timedelta(days=1)
"""How long deliveries are signed with the secret before too."""
MOST: Final = 50
"""Webhooks of one owner: each event is written once for each of them."""
DISABLED: Final = "somebody disabled the webhook before this was delivered"


# --- reading ----------------------------------------------------------------------------------------------------------


def webhooks(state: AppState, caller: Caller, owner: str | None, limit: int, cursor: str | None) -> Page[WebhookView]:
    """The caller's own webhooks; for admins all, or one owner's."""
    owners = {each for each in (owner, caller.only_owner(Scope.READ_WEBHOOKS)) if each}
    with state.database.read() as session:
        rows, next_cursor = repository.webhooks(session, owners, limit, cursor)
    return Page[WebhookView](items=[view(row) for row in rows], next_cursor=next_cursor)


def show(state: AppState, caller: Caller, webhook_id: str) -> WebhookView:
    """One webhook. Raises the API's 404."""
    with state.database.read() as session:
        return view(_seen(session, caller, webhook_id))


def deliveries(state: AppState, caller: Caller, webhook_id: str, limit: int, cursor: str | None) -> Page[DeliveryView]:
    """A webhook's deliveries, newest first. Raises the API's 404."""
    with state.database.read() as session:
        _seen(session, caller, webhook_id)
        rows, next_cursor = repository.deliveries(session, caller, webhook_id, limit, cursor)
    return Page[DeliveryView](items=[delivery_view(row) for row in rows], next_cursor=next_cursor)


def delivery(state: AppState, caller: Caller, webhook_id: str, delivery_id: str) -> DeliveryView:
    """One delivery. Raises the API's 404."""
    with state.database.read() as session:
        _seen(session, caller, webhook_id)
        return delivery_view(_delivery(session, caller, webhook_id, delivery_id))


def view(webhook: Webhook) -> WebhookView:
    """A webhook as the API shows it."""
    return WebhookView.model_validate(webhook, from_attributes=True)


def delivery_view(row: WebhookDelivery) -> DeliveryView:
    """A delivery as the API shows it."""
    state: DeliveryState = "waiting" if row.next_attempt_at else "failed" if row.message else "delivered"
    fields = {name: getattr(row, name) for name in DeliveryView.model_fields if name != "state"}
    return DeliveryView.model_validate(fields | {"state": state})


# --- changes ----------------------------------------------------------------------------------------------------------


def create(state: AppState, caller: Caller, body: WebhookBody) -> NewWebhookView:
    """Create a webhook.

    Raises 403 if it would belong to somebody else, 409 if its owner has too many, and 422 if nothing may be sent to its
    URL.
    """
    owner = body.owner or caller.owner
    if not caller.may(Scope.WEBHOOKS, owner):
        text = f"only admins create webhooks for others: leave owner out, or set it to {caller.owner}"
        raise ApiProblem(403, "forbidden", text)
    _check_url(state, body.url)
    with state.database.session() as session:
        rows, _ = repository.webhooks(session, {owner}, MOST, None)
        if len(rows) >= MOST:
            raise ApiProblem(409, "too_many_webhooks", f"{owner} has {MOST} webhooks: delete one, or change one")
        fields = body.model_dump(mode="json", exclude={"owner"})
        webhook = Webhook(**fields, owner=owner, secret=_new_secret())
        session.add(webhook)
        session.flush()
        caller.record(session, webhook.id, owner=owner, **_recorded(fields))
        return NewWebhookView(**vars(view(webhook)), secret=webhook.secret)


def change(state: AppState, caller: Caller, webhook_id: str, body: WebhookPatch) -> WebhookView:
    """Change a webhook. Raises 403 and 404, and 422 if nothing may be sent to its URL."""
    fields = body.model_dump(mode="json", exclude_unset=True)
    with state.database.read() as session:
        _changeable(session, caller, webhook_id)
    if "url" in fields:
        _check_url(state, fields["url"])
    with state.database.session() as session:
        webhook = _changeable(session, caller, webhook_id)
        for name, value in fields.items():
            setattr(webhook, name, value)
        if fields.get("enabled"):
            webhook.disabled_because, webhook.failing_since = "", None
        elif "enabled" in fields:
            repository.end_waiting(session, webhook.id, now(), DISABLED)
        caller.record(session, webhook.id, **_recorded(fields))
        return view(webhook)


def rotate(state: AppState, caller: Caller, webhook_id: str) -> NewWebhookView:
    """Give a webhook a new secret; deliveries are signed with the one before too for a day. Raises 403 and 404."""
    with state.database.session() as session:
        webhook = _changeable(session, caller, webhook_id)
        webhook.previous_secret, webhook.previous_until = webhook.secret, now() + ROTATION
        webhook.secret = _new_secret()
        caller.record(session, webhook.id)
        return NewWebhookView(**vars(view(webhook)), secret=webhook.secret)


def remove(state: AppState, caller: Caller, webhook_id: str) -> WebhookView:
    """Delete a webhook with its deliveries. Raises 403 and 404."""
    with state.database.session() as session:
        webhook = _changeable(session, caller, webhook_id)
        session.delete(webhook)
        caller.record(session, webhook.id, owner=webhook.owner)
        return view(webhook)


def test(state: AppState, caller: Caller, webhook_id: str) -> DeliveryView:
    """Send something to a webhook, also to a disabled one, once and without retries. Raises 403 and 404."""
    with state.database.session() as session:
        webhook = _changeable(session, caller, webhook_id)
        data = {"webhook_id": webhook.id, "actor": caller.owner, "urls": {"page": f"/webhooks/{webhook.id}"}}
        row = new_delivery(webhook, TEST, data, now())
        session.add(row)
        session.flush()
        caller.record(session, webhook.id, delivery=row.id)
        found = delivery_view(row)
    state.wake.set()
    return found


def retry(state: AppState, caller: Caller, webhook_id: str, delivery_id: str) -> DeliveryView:
    """Send a delivery now: one that waits before its time, one that has ended once more from its first attempt on.

    A disabled webhook gets it once, without more attempts.

    Raises 403 and 404.
    """
    with state.database.session() as session:
        _changeable(session, caller, webhook_id)
        row = _delivery(session, caller, webhook_id, delivery_id)
        if row.next_attempt_at is None:
            row.attempts, row.ended_at, row.message = 0, None, ""
        row.next_attempt_at = now()
        caller.record(session, webhook_id, delivery=row.id, type=row.type)
        found = delivery_view(row)
    state.wake.set()
    return found


def _seen(session: Session, caller: Caller, webhook_id: str) -> Webhook:
    """A webhook that the caller may see. Raises the API's 404."""
    webhook = session.get(Webhook, webhook_id)
    if webhook is None or not caller.may(Scope.READ_WEBHOOKS, webhook.owner):
        raise not_found("webhook", webhook_id)
    return webhook


def _changeable(session: Session, caller: Caller, webhook_id: str) -> Webhook:
    """A webhook that the caller may change. Raises the API's 403 and 404."""
    webhook = _seen(session, caller, webhook_id)
    caller.must(Scope.WEBHOOKS, webhook.owner)
    return webhook


def _delivery(session: Session, caller: Caller, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """A webhook's delivery that the caller sees. Raises the API's 404."""
    row = repository.delivery(session, caller, webhook_id, delivery_id)
    if row is None:
        raise not_found("delivery", delivery_id)
    return row


def _check_url(state: AppState, url: str) -> None:
    """Raises the API's 422 for a URL to which nothing may be sent."""
    try:
        receivers.check(url, state.settings.webhook_private_networks or ())
    except receivers.NotAllowed as error:
        raise spec_problem([Problem("url", "/url", url, str(error))]) from error


def _new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _recorded(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as the audit log has them: of a URL the host alone, since the rest may be a secret of the receiver's."""
    return fields | ({"url": urlsplit(fields["url"]).hostname} if "url" in fields else {})

"""Sends what the outbox holds for webhooks.

A webhook is one piece of work, however many of its deliveries are due: a receiver that hangs keeps one worker busy and
holds up nobody else's deliveries but its own.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.adapters import receivers
from service.controller.context import ControllerContext
from service.controller.queue import GO_ON, Task
from service.db.tables import Webhook, WebhookDelivery, now
from service.events.outbox import may_be_told
from service.jobs.work import Work
from service.webhooks import repository
from service.webhooks.sending import LONGEST_PAUSE, Result, message, record

log = structlog.get_logger()

KEPT: Final = timedelta(days=30)
"""How long deliveries are kept after their end."""
MOST_KEPT: Final = 1000
"""Of one webhook."""
NOT_SEEN: Final = "the webhook's owner does not see the backbone any more, so nothing is sent of it"
OWNER_MAY_NOT: Final = "the webhook's owner has no valid token any more that may have webhooks, so nothing is sent"


class Deliveries:
    """What waits for webhooks, and the log of what was sent."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    def find(self, session: Session) -> dict[Work, list[str]]:
        """The webhooks for which something is due."""
        return {Work.DELIVER: repository.due_webhooks(session, now(), LONGEST_PAUSE), Work.SWEEP_DELIVERIES: [""]}

    def deliver(self, task: Task) -> timedelta | None:
        """Send what is due for a webhook, the longest due first."""
        while True:
            with self._context.app.database.read() as session:
                webhook = session.get(Webhook, task.target)
                row = repository.due_delivery(session, task.target, now(), LONGEST_PAUSE)
                told = session.scalar(select(Webhook.id).where(Webhook.id == task.target, may_be_told()))
                seen = row and repository.is_seen(session, row)
            if webhook is None or row is None:
                return None
            if told is None:
                self._give_up(webhook)
                return None
            if seen:
                self._attempt(webhook, row)
            else:
                self._give_up_one(webhook, row)
            if task.pauses:
                return GO_ON

    def _give_up(self, webhook: Webhook) -> None:
        """Let everything fail that waits for a webhook whose owner may have none any more."""
        with self._context.write() as session:
            repository.end_waiting(session, webhook.id, now(), OWNER_MAY_NOT)
        log.warning("webhook_not_delivered", webhook_id=webhook.id, detail=OWNER_MAY_NOT)

    def _give_up_one(self, webhook: Webhook, row: WebhookDelivery) -> None:
        """Let a delivery fail whose backbone has become private to others."""
        with self._context.write() as session:
            repository.end_waiting(session, webhook.id, now(), NOT_SEEN, row.id)
        log.warning("webhook_not_delivered", webhook_id=webhook.id, delivery=row.id, detail=NOT_SEEN)

    def _attempt(self, webhook: Webhook, row: WebhookDelivery) -> None:
        """Send a delivery once, and write down how that went."""
        settings, moment = self._context.app.settings, now()
        headers, body = message(webhook, row, moment, settings.public_url)
        self._context.check()
        result = _post(webhook.url, headers, body, settings.webhook_private_networks or ())
        with self._context.write() as session:
            current, sent = session.get(Webhook, webhook.id), session.get(WebhookDelivery, row.id)
            if current is None or sent is None:
                return  # somebody has deleted them meanwhile
            record(session, current, sent, result, moment)
        fields = {"webhook_id": webhook.id, "delivery": row.id, "type": row.type, "attempt": sent.attempts}
        if result.problem:
            log.warning("webhook_not_delivered", **fields, detail=result.problem, disabled=not current.enabled)
        else:
            log.info("webhook_delivered", **fields, duration_s=sent.duration_s)

    def sweep(self, _: Task) -> timedelta:
        """Delete old deliveries."""
        with self._context.write() as session:
            repository.forget(session, now() - KEPT, MOST_KEPT)
        return timedelta(seconds=self._context.app.settings.sweep_interval_s)


def _post(url: str, headers: dict[str, str], body: bytes, private: tuple[receivers.Network, ...]) -> Result:
    began = time.monotonic()
    try:
        answer = receivers.post(url, headers, body, private)
    except (receivers.NotAllowed, receivers.Undelivered) as error:
        return Result(time.monotonic() - began, None, str(error))
    return Result(time.monotonic() - began, answer)

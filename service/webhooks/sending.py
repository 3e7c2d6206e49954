"""What one attempt at a delivery sends, and what follows from its result. Nothing here talks to a receiver."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses
from random import SystemRandom
from typing import Final

from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Signer

from service.adapters.receivers import Answer
from service.db.tables import Webhook, WebhookDelivery
from service.events.types import TEST
from service.webhooks import repository
from trainer.spec.text import visible

PAUSES: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)),
)
"""Before each attempt after the first one, as Standard Webhooks suggests: about three days in all."""
JITTER: Final = 0.1
"""A pause is longer by up to this share of it, so that what failed together does not return together."""
LONGEST_WAIT: Final = timedelta(hours=24)
"""As long as a receiver may ask for with `Retry-After`."""
LONGEST_PAUSE: Final = timedelta(hours=27)
"""No delivery waits longer."""
FAILING_LIMIT: Final = timedelta(days=5)
"""A webhook is disabled when a delivery fails for good and none has succeeded for so long."""
SHOWN_CHARACTERS: Final = 1000
"""As much of a response is kept."""
ASKS_TO_WAIT: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True)
class Result:
    """How an attempt went."""

    duration_s: float
    answer: Answer | None
    trouble: str = ""
    """Why there was no answer."""

    @property
    def gone(self) -> bool:
        return self.answer is not None and self.answer.status == HTTPStatus.GONE

    @property
    def problem(self) -> str:
        """Why it failed; empty if it succeeded."""
        if self.answer is None:
            return self.trouble
        status = self.answer.status
        if 200 <= status < 300:
            return ""
        name = responses.get(status, "")
        hint = ": redirects are not followed, so change the webhook's URL" if 300 <= status < 400 else ""
        return f"the receiver answered {status} {name}".rstrip() + hint


def message(
    webhook: Webhook, row: WebhookDelivery, moment: datetime, public_url: str | None
) -> tuple[dict[str, str], bytes]:
    """Headers and body of an attempt at ``moment``, signed with the secret, and for a while with the one before."""
    data = dict(row.data)
    if public_url and "urls" in data:
        data["urls"] = {name: public_url + path for name, path in data["urls"].items()}
    body = json.dumps({"type": row.type, "timestamp": row.created_at.isoformat(), "data": data}, separators=(",", ":"))
    secrets = [webhook.secret]
    if webhook.previous_secret and webhook.previous_until and webhook.previous_until > moment:
        secrets.append(webhook.previous_secret)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "rcmae",
        "Accept-Encoding": "identity",
        "webhook-id": row.id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(row.id, moment, body) for secret in secrets),
    }
    return headers, body.encode()


def record(session: Session, webhook: Webhook, row: WebhookDelivery, result: Result, moment: datetime) -> None:
    """Write down how an attempt at ``moment`` went, and when the next one is due, if there is to be one."""
    answer, problem = result.answer, result.problem
    row.attempts, row.last_attempt_at, row.duration_s = row.attempts + 1, moment, round(result.duration_s, 3)
    row.response_code = answer.status if answer else None
    row.response = visible(answer.body.decode(errors="replace"))[:SHOWN_CHARACTERS] if answer else ""
    row.message = problem
    webhook.last_attempt_at, webhook.last_message = moment, problem
    if not problem:
        row.next_attempt_at, row.ended_at, webhook.failing_since = None, moment, None
        return
    if row.type != TEST:
        webhook.failing_since = webhook.failing_since or moment
    _decide(session, webhook, row, result, moment)


def _decide(session: Session, webhook: Webhook, row: WebhookDelivery, result: Result, moment: datetime) -> None:
    """What follows from a failed attempt."""
    pause = None if row.type == TEST or not webhook.enabled else next_pause(row.attempts, result.answer, moment)
    if pause is None or result.gone or row.next_attempt_at is None:  # the last: somebody has ended it meanwhile
        row.next_attempt_at, row.ended_at = None, moment
    else:
        row.next_attempt_at = moment + pause
    if result.gone:
        _disable(session, webhook, moment, "the receiver answered 410 Gone: it wants no more deliveries")
    elif row.ended_at and webhook.failing_since and moment - webhook.failing_since >= FAILING_LIMIT:
        _disable(session, webhook, moment, f"all deliveries have failed for {FAILING_LIMIT.days} days")


def _disable(session: Session, webhook: Webhook, moment: datetime, why: str) -> None:
    if webhook.enabled:
        webhook.enabled, webhook.disabled_because = False, why
        session.flush()
        repository.end_waiting(session, webhook.id, moment, f"the webhook was disabled: {why}")


def next_pause(attempts: int, answer: Answer | None, moment: datetime) -> timedelta | None:
    """The pause after so many failed attempts; None where there is no other attempt."""
    if attempts > len(PAUSES):
        return None
    pause = PAUSES[attempts - 1] * SystemRandom().uniform(1.0, 1.0 + JITTER)
    wanted = _wanted_pause(answer, moment) if answer and answer.status in ASKS_TO_WAIT else None
    return max(pause, min(wanted, LONGEST_WAIT)) if wanted else pause


def _wanted_pause(answer: Answer, moment: datetime) -> timedelta | None:
    """What a receiver asks for with `Retry-After`, in seconds or as a date; None where it asks for nothing readable."""
    text = answer.retry_after or ""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return timedelta(seconds=int(text))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # an overflow: a year of more digits than a date can have
        return None
    return (until if until.tzinfo else until.replace(tzinfo=UTC)) - moment

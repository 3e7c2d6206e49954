"""Queries for webhooks and their deliveries. Every function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.auth.caller import Caller
from service.db.tables import Webhook, WebhookDelivery
from service.events.outbox import seen_deliveries, still_seen
from service.http.paging import read_moment, write_cursor


def webhooks(
    session: Session, owners: set[str], limit: int, cursor: str | None
) -> tuple[Sequence[Webhook], str | None]:
    """One page of webhooks, newest first, and the cursor of the next page.

    A webhook must belong to every owner in ``owners``; with none it may be anybody's.
    """
    query = select(Webhook).where(*(Webhook.owner == owner for owner in sorted(owners)))
    query = query.where(*_after(Webhook.created_at, Webhook.id, cursor))
    rows = session.scalars(query.order_by(Webhook.created_at.desc(), Webhook.id.desc()).limit(limit + 1)).all()
    return rows[:limit], _next(rows, limit)


def deliveries(
    session: Session, caller: Caller, webhook_id: str, limit: int, cursor: str | None
) -> tuple[Sequence[WebhookDelivery], str | None]:
    """One page of a webhook's deliveries that a caller sees, newest first, and the cursor of the next page."""
    row = WebhookDelivery
    query = select(row).where(
        row.webhook_id == webhook_id, *seen_deliveries(caller), *_after(row.created_at, row.id, cursor)
    )
    rows = session.scalars(query.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1)).all()
    return rows[:limit], _next(rows, limit)


def delivery(session: Session, caller: Caller, webhook_id: str, delivery_id: str) -> WebhookDelivery | None:
    """One of a webhook's deliveries, if there is one that a caller sees."""
    row = WebhookDelivery
    query = select(row).where(row.id == delivery_id, row.webhook_id == webhook_id, *seen_deliveries(caller))
    return session.scalars(query).first()


def _after(
    moments: InstrumentedAttribute[datetime], ids: InstrumentedAttribute[str], cursor: str | None
) -> list[ColumnElement[bool]]:
    if cursor is None:
        return []
    moment, last = read_moment(cursor)
    return [or_(moments < moment, and_(moments == moment, ids < last))]


def _next(rows: Sequence[Webhook] | Sequence[WebhookDelivery], limit: int) -> str | None:
    return write_cursor([rows[limit - 1].created_at.isoformat(), rows[limit - 1].id]) if len(rows) > limit else None


def end_waiting(
    session: Session, webhook_id: str, moment: datetime, message: str, delivery_id: str | None = None
) -> None:
    """Let all deliveries of a webhook fail that wait, or one of them."""
    row = WebhookDelivery
    waiting = update(row).where(row.webhook_id == webhook_id, row.next_attempt_at.is_not(None))
    if delivery_id is not None:
        waiting = waiting.where(row.id == delivery_id)
    session.execute(waiting.values(next_attempt_at=None, ended_at=moment, message=message))


# --- what the controller asks -----------------------------------------------------------------------------------------


def _due(moment: datetime, longest: timedelta) -> ColumnElement[bool]:
    """What is due; what is later than any pause was stored before this host's clock was set back."""
    at = WebhookDelivery.next_attempt_at
    return and_(at.is_not(None), or_(at <= moment, at > moment + longest))


def due_webhooks(session: Session, moment: datetime, longest: timedelta) -> list[str]:
    """The ids of the webhooks with a delivery that is due."""
    query = select(WebhookDelivery.webhook_id).where(_due(moment, longest)).order_by(WebhookDelivery.next_attempt_at)
    return list(dict.fromkeys(session.scalars(query)))  # DISTINCT would have the database read all deliveries


def due_delivery(session: Session, webhook_id: str, moment: datetime, longest: timedelta) -> WebhookDelivery | None:
    """A webhook's delivery that has been due for longest."""
    row = WebhookDelivery
    query = select(row).where(row.webhook_id == webhook_id, _due(moment, longest))
    return session.scalars(query.order_by(row.next_attempt_at, row.id).limit(1)).first()


def is_seen(session: Session, delivery: WebhookDelivery) -> bool:
    """Whether a webhook's owner still sees the backbone that a delivery is about, if it is about one."""
    row = WebhookDelivery
    query = select(row.id).join(Webhook, Webhook.id == row.webhook_id).where(row.id == delivery.id, still_seen())
    return session.scalar(query) is not None


def forget(session: Session, before: datetime, keep: int) -> int:
    """Delete deliveries that ended before a moment, and of each webhook all but the newest; returns how many."""
    row = WebhookDelivery
    ended = row.ended_at.is_not(None)
    old = session.execute(delete(row).where(ended, row.ended_at < before))
    count: int = old.rowcount  # type: ignore[attr-defined]
    for webhook_id in session.scalars(select(Webhook.id)).all():
        newest = select(row.created_at).where(row.webhook_id == webhook_id, ended)
        limit = session.scalar(newest.order_by(row.created_at.desc()).offset(keep).limit(1))
        if limit:
            more = delete(row).where(row.webhook_id == webhook_id, ended, row.created_at <= limit)
            count += session.execute(more).rowcount  # type: ignore[attr-defined]
    return count

"""Tables of webhooks and their deliveries."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables.base import Base, now

WAITS = text("next_attempt_at IS NOT NULL")


class Webhook(Base):
    """A receiver of events."""

    __tablename__ = "webhook"
    __table_args__ = (Index(None, "owner", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=lambda: f"hook-{secrets.token_hex(7)}")
    owner: Mapped[str] = mapped_column(String(100))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Types of `service.events.types`; None for all, those of later releases included."""
    backbones: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """The backbones whose events it gets; None for all events."""
    description: Mapped[str] = mapped_column(Text, default="")
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_because: Mapped[str] = mapped_column(Text, default="")
    """Why the service has disabled it; empty if it has not."""
    secret: Mapped[str] = mapped_column(String(128))
    """The key of its signatures. Unlike a token's text it is stored as it is: each delivery is signed with it."""
    previous_secret: Mapped[str | None] = mapped_column(String(128))
    """The one before, which deliveries are signed with too until `previous_until`."""
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    failing_since: Mapped[datetime | None]
    """The first failed attempt since the last one that succeeded."""
    last_attempt_at: Mapped[datetime | None]
    last_message: Mapped[str] = mapped_column(Text, default="")
    """Why the last attempt failed; empty if it succeeded."""


class WebhookDelivery(Base):
    """An event on its way to a webhook, written in the transaction of what it tells of. The controller sends it."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        Index(None, "webhook_id", "created_at", "id"),
        Index("ix_webhook_delivery_waits", "next_attempt_at", sqlite_where=WAITS, postgresql_where=WAITS),
        Index(None, "ended_at"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=lambda: f"msg-{secrets.token_hex(12)}")
    """The same in all attempts, by which receivers notice repeats."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]
    backbone: Mapped[str | None] = mapped_column(String(256))
    """The backbone that it is about: it is sent to those alone who see it."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    """When it happened."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None]
    """None once it has been delivered, or has failed for good."""
    last_attempt_at: Mapped[datetime | None]
    duration_s: Mapped[float | None]
    """Of the last attempt."""
    response_code: Mapped[int | None]
    """The HTTP status of the last attempt's response; None if there was none."""
    response: Mapped[str] = mapped_column(Text, default="")
    """The beginning of that response's body."""
    message: Mapped[str] = mapped_column(Text, default="")
    """Why the last attempt failed; empty if it succeeded."""
    ended_at: Mapped[datetime | None]
    """When it was delivered, or failed for good."""

"""Tables of tokens, sessions and the audit log."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables.base import Base, now


class Token(Base):
    """A bearer token. Only its sha256 is stored."""

    __tablename__ = "token"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True, default=lambda: f"tok-{secrets.token_hex(7)}")
    """Identifies it to people; reveals nothing of the token."""
    name: Mapped[str] = mapped_column(String(100), default="")
    """What it is for."""
    owner: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    revoked_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A session of the dashboard. Only the sha256 of the text in its cookie is stored."""

    __tablename__ = "browser_session"
    __table_args__ = (Index(None, "token_id"), Index(None, "seen_at"))

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("token.id"))
    """The token that began it."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now)
    """When its last request came, to the minute."""


class Audit(Base):
    """A change that somebody made or was refused. The database refuses to change or delete an entry."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "actor", "id"), Index(None, "target", "id"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[datetime] = mapped_column(default=now)
    actor: Mapped[str] = mapped_column(String(100))
    """The token's owner."""
    token_id: Mapped[str | None] = mapped_column(String(32))
    action: Mapped[str] = mapped_column(String(64))
    """Such as `job.submit` or `token.revoke`."""
    target: Mapped[str] = mapped_column(String(200))
    """The id or name of what was to be changed."""
    status: Mapped[int]
    """The HTTP status of the response."""
    request_id: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    """Where the request came from."""
    detail: Mapped[dict[str, Any] | None]

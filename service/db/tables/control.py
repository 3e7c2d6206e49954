"""Tables of the controller: its lease, its work, and its comparison with MLflow."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables.base import Base, now


class WorkItem(Base):
    """Something that takes long, for a worker of the controller to do. The row goes once it is done."""

    __tablename__ = "work_item"
    __table_args__ = (Index(None, "kind", "due_at"), Index(None, "lock_token"))

    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    target: Mapped[str] = mapped_column(String(300), primary_key=True)
    """What is to be worked on, such as a job's id."""
    due_at: Mapped[datetime] = mapped_column(default=now)
    """The earliest time to begin, or to go on."""
    cursor: Mapped[str | None] = mapped_column(Text)
    """How far it has come."""
    message: Mapped[str] = mapped_column(Text, default="")
    """What went wrong so far."""
    failures: Mapped[int] = mapped_column(default=0)
    """Consecutive failures; they determine the back-off."""
    lock_token: Mapped[str | None] = mapped_column(String(32))
    """Known to the worker that works on it, and checked by each of its writes; None where nobody does."""
    locked_by: Mapped[str | None] = mapped_column(String(200))
    """The worker's process, for people."""
    lock_expires_at: Mapped[datetime | None]


class Lease(Base):
    """The right to act as the only controller. The holder renews it with heartbeats."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(200))
    """Host, process and a random part; None if the lease was released."""
    beat: Mapped[int] = mapped_column(default=0)
    """Rises with every heartbeat. Others compare it with the value they read before, so clocks do not matter."""
    beat_at: Mapped[datetime] = mapped_column(default=now)
    """When it last rose; for people and for readiness."""
    round_at: Mapped[datetime | None]
    """When the holder last finished a round."""


class RegistryCheck(Base):
    """When the rows of versions were last compared with MLflow. There is no row until all versions have been read."""

    __tablename__ = "registry_check"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    checked_at: Mapped[datetime] = mapped_column(default=now)

"""The events that webhooks tell of. Imports pydantic only: the client uses this module.

A new event is one entry in `EventType`, one in `MEANINGS`, and a call of `service.events.outbox.emit` where it happens.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class EventType(StrEnum):
    """A kind of event."""

    VERSION_REGISTERED = "version.registered"
    ALIAS_MOVED = "alias.moved"
    VERSION_DELETED = "version.deleted"


MEANINGS: Final = {
    EventType.VERSION_REGISTERED: "a job has registered a version of a backbone",
    EventType.ALIAS_MOVED: "an alias was set, moved to another version, or removed",
    EventType.VERSION_DELETED: "somebody has deleted a version, which can no longer be pulled",
}
"""What has happened."""

TEST: Final = "webhook.test"
"""The type of a delivery that somebody sends by hand to try a webhook. It is no event, and cannot be subscribed to."""

"""Request and response models of webhooks. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StrictBool, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from service.events.types import MEANINGS, EventType
from service.http.schemas import Body, View

MOST_BACKBONES: Final = 100
EVENTS_HELP: Final = "The events that it hears of, or null for all, those of later releases included. " + "; ".join(
    f"`{event}`: {meaning}" for event, meaning in MEANINGS.items()
)
BACKBONES_HELP: Final = (
    "The names of the backbones whose events it hears of, or null for everything; of private ones only those that its "
    "owner sees."
)

DeliveryState = Literal["waiting", "delivered", "failed"]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
BackboneName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,199}$")]
Events = Annotated[list[EventType], Field(min_length=1, max_length=len(EventType))]
Backbones = Annotated[list[BackboneName], Field(min_length=1, max_length=MOST_BACKBONES)]


class WebhookView(View):
    """A webhook, without its secret."""

    id: str
    owner: str
    url: str
    """Where deliveries are sent."""
    events: list[str] | None
    """The events that it hears of; null is all."""
    backbones: list[str] | None
    """The backbones whose events it hears of; null is everything."""
    description: str
    enabled: bool
    disabled_because: str
    """Why the service has disabled it; empty if it has not."""
    created_at: datetime
    failing_since: datetime | None
    """When the first attempt failed since the last one that succeeded; null if that was the last one."""
    last_attempt_at: datetime | None
    """When something was last sent; null for never."""
    last_message: str
    """Why the last attempt failed; empty if it succeeded."""


class NewWebhookView(WebhookView):
    """A webhook whose secret was just made."""

    secret: str
    """The key of its signatures, `whsec_…`. It is never shown again."""


class WebhookBody(Body):
    """A webhook to create."""

    url: Url
    """Where to send deliveries. The host's addresses must be public, unless an operator allows their network."""
    events: Events | None = Field(None, description=EVENTS_HELP)
    backbones: Backbones | None = Field(None, description=BACKBONES_HELP)
    description: str = Field("", max_length=200)
    """What it is for."""
    enabled: StrictBool = True
    owner: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,99}$")] | None = None
    """Who owns it; by default the caller. Only admins create webhooks for others."""


class WebhookPatch(Body):
    """What to change of a webhook; fields that are left out stay."""

    url: Url | None = None
    """Where to send deliveries, those that wait included."""
    events: Events | None = Field(None, description=EVENTS_HELP)
    backbones: Backbones | None = Field(None, description=BACKBONES_HELP)
    description: str | None = Field(None, max_length=200)
    """What it is for."""
    enabled: StrictBool | None = None
    """Deliveries that wait when it is disabled fail. What happens while it is disabled is not delivered later."""

    @field_validator("url", "description", "enabled")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise PydanticCustomError("null", "cannot be null: leave it out to keep it as it is")
        return value


class DeliveryView(View):
    """An event on its way to a webhook, or what has become of it."""

    id: str
    """The header `webhook-id`: the same in all attempts, so that receivers can drop repeats."""
    webhook_id: str
    type: str
    """The event, or `webhook.test`."""
    data: dict[str, Any]
    """What the receiver gets as `data`, there with complete links if the service knows its own address."""
    state: DeliveryState
    created_at: datetime
    """When it happened."""
    attempts: int
    """Attempts so far."""
    next_attempt_at: datetime | None
    """When it is sent next; null once it has been delivered, or has failed for good."""
    last_attempt_at: datetime | None
    duration_s: float | None
    """Seconds that the last attempt took."""
    response_code: int | None
    """The HTTP status of the last attempt's response; null if there was none."""
    response: str
    """The beginning of that response's body."""
    message: str
    """Why the last attempt failed; empty if it succeeded."""
    ended_at: datetime | None
    """When it was delivered, or failed for good."""

"""What the routes of tokens and of the audit log take and give. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, StrictInt, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from service.http.schemas import Body, View, refuse_numbers

RoleName = Literal["viewer", "submitter", "operator", "admin"]
Owner = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,99}$")]

LONGEST_DAYS: Final = 3650
"""The longest life of a token that ends."""


class TokenView(View):
    """A token, without its text."""

    id: str
    """What it is called in paths and in the audit log; says nothing of its text."""
    name: str
    """What it is for."""
    owner: str
    role: RoleName
    state: Literal["active", "ended", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    """When it ends by itself; null is never."""
    last_used_at: datetime | None
    """To the minute."""
    revoked_at: datetime | None


class NewTokenView(TokenView):
    """A token that was made just now."""

    token: str
    """Its text, to be sent as `Authorization: Bearer <token>`. Shown here and never again: only its hash is kept."""


class TokenBody(Body):
    """A token to be made."""

    owner: Owner | None = None
    """Whose it is; by default the caller's own. Only admins make tokens for others."""
    role: RoleName
    """viewer: read everybody's jobs; submitter: submit jobs, see and control one's own; operator: see and control
    everybody's; admin: tokens too. A token makes none that may do or see more than itself."""
    name: str = Field("", max_length=100)
    """What it is for."""
    expires_in_days: StrictInt | None = Field(None, ge=1, le=LONGEST_DAYS)
    """Days until it ends by itself; without an end it lives until it is revoked."""
    expires_at: Annotated[AwareDatetime, BeforeValidator(refuse_numbers)] | None = None
    """The same as a moment."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.expires_in_days is not None and self.expires_at is not None:
            raise PydanticCustomError("two_ends", "give expires_in_days or expires_at, not both")
        return self


class RotateBody(Body):
    """How a token is replaced."""

    grace_s: StrictInt = Field(0, ge=0, le=86_400)
    """Seconds for which the old text stays valid beside the new one; by default it ends at once."""


class AuditView(View):
    """One thing that somebody asked to change, whether it was done or refused."""

    id: int
    time: datetime
    actor: str
    """The owner of the token; `-` where there was none, or none that is known."""
    token_id: str | None
    action: str
    """Such as `job.submit`, `job.cancel` or `token.revoke`."""
    target: str
    """The id of what it was to be done to; empty where there is none, as of a submission that was refused."""
    status: int
    """The answer's: below 300 it was done."""
    request_id: str | None
    """The answer's `X-Request-ID`, which is also in the logs."""
    address: str | None
    """Where the request came from."""
    detail: dict[str, Any] | None

"""Request and response models of tokens and the audit log. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from service.auth.scopes import Role, described
from service.http.schemas import Body, Owner, View, refuse_numbers

RoleName = Literal["viewer", "submitter", "operator", "admin"]

ROLE_HELP: Final = "What it may do and see. A token cannot create one with a scope that it lacks itself. " + "; ".join(
    f"{role}: {described(role)}" for role in Role
)

LONGEST_DAYS: Final = 3650
"""The longest life, in days, of a token that expires."""


class TokenView(View):
    """A token, without its text."""

    id: str
    """Identifies it in paths and in the audit log; reveals nothing of its text."""
    name: str
    """What it is for."""
    owner: str
    role: RoleName
    state: Literal["active", "ended", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    """When it expires; null is never."""
    last_used_at: datetime | None
    """To the minute."""
    revoked_at: datetime | None


class NewTokenView(TokenView):
    """A token that was just created."""

    token: str
    """Its text, to be sent as `Authorization: Bearer <token>`. It is never shown again: only its hash is stored."""


class TokenBody(Body):
    """A token to create."""

    owner: Owner | None = None
    """Who owns it; by default the caller. Only admins create tokens for others."""
    role: RoleName = Field(description=ROLE_HELP)
    name: str = Field("", max_length=100)
    """What it is for."""
    expires_in_days: StrictInt | None = Field(None, ge=1, le=LONGEST_DAYS)
    """Days until it expires; without an expiry it is valid until it is revoked."""
    expires_at: Annotated[AwareDatetime, BeforeValidator(refuse_numbers)] | None = None
    """When it expires, as an alternative to `expires_in_days`."""

    @model_validator(mode="after")
    def _one_expiry(self) -> Self:
        if self.expires_in_days is not None and self.expires_at is not None:
            raise PydanticCustomError("two_ends", "give expires_in_days or expires_at, not both")
        return self


class RotateBody(Body):
    """How a token is replaced."""

    grace_s: StrictInt = Field(0, ge=0, le=86_400)
    """Seconds for which the old text stays valid beside the new one; by default it ends at once."""


class AuditView(View):
    """One requested change, whether it was done or refused."""

    id: int
    time: datetime
    actor: str
    """The owner of the token; `-` if the request had no known token."""
    token_id: str | None
    action: str
    """Such as `job.submit`, `job.cancel` or `token.revoke`."""
    target: str
    """The id of what was to be changed; empty if there is none, for example for a refused submission."""
    status: int
    """The HTTP status of the response: below 300 the change was made."""
    request_id: str | None
    """The `X-Request-ID` of the response, which is also in the logs."""
    address: str | None
    """Where the request came from."""
    detail: dict[str, Any] | None
    """What was changed, or the `code` of the refusal. `unrecorded` counts the requests without a valid token, of the
    same address, actor and action, that came since the entry before and have none of their own."""

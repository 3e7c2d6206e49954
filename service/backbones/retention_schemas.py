"""Request and response models of retention rules. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, StrictInt
from pydantic_core import PydanticCustomError

from service.http.schemas import Body, View

NOTICE_DAYS: Final = 1
"""A version is shown as one that goes for at least so long before it goes."""
NOT_COUNTED: Final = (
    "Downloads through this service count as use, by day, and so do clients of the hub that ask whether their cache is "
    "current. What people read through MLflow, straight from the artifact storage, or from a cache without asking "
    "(offline, or by a commit) does not: give a version that is used that way an alias here, not in MLflow."
)
"""What a rule cannot know."""


def _given(days: object) -> object:
    if days is None:
        raise PydanticCustomError(
            "nothing_expires",
            "nothing would ever be deleted: give the days without a use after which a version goes, for example "
            "90; keep_newest only says what stays",
        )
    return days


def _has_no_default(schema: dict[str, Any]) -> None:
    """The default is there to be refused with a text of its own: the field is required."""
    del schema["default"]


class RetentionBody(Body):
    """A rule by which versions of a backbone are deleted. A version goes only if nothing keeps it."""

    expire_unused_days: Annotated[StrictInt, Field(ge=1, le=3650), BeforeValidator(_given)] = Field(
        None, validate_default=True, json_schema_extra=_has_no_default
    )
    """Required. A version goes once it is older than this and nobody has used it for as long."""
    keep_newest: Annotated[StrictInt, Field(ge=1, le=10_000)] = 1
    """So many of the newest versions always stay."""


class RetentionRuleView(View):
    """The retention rule of a backbone."""

    expire_unused_days: int
    """A version goes once it is older than this and nobody has used it for as long."""
    keep_newest: int
    """So many of the newest versions always stay."""
    set_by: str
    set_at: datetime


class VersionRetentionView(View):
    """What a rule does with a version."""

    version: int
    action: Literal["keep", "delete"]
    """`delete`: nothing keeps it, and it goes at `expires_at`."""
    why: list[str]
    """Everything that keeps it, or why it goes."""
    expires_at: datetime | None = None
    """When it goes unless somebody uses it, or gives it an alias here; null: not by the passing of time."""
    created_at: datetime
    last_used_on: date | None = None
    """The last day in UTC on which somebody used it."""
    aliases: list[str] = Field(default_factory=list)
    owner: str
    bytes: int | None = None
    """Of its files; null until the controller has added them up."""


class RetentionView(View):
    """The retention rule of a backbone, and what it does with each version."""

    name: str
    rule: RetentionRuleView | None = None
    """Null: nothing is ever deleted by itself."""
    versions: list[VersionRetentionView]
    """Newest first."""
    deletes: list[int]
    """The versions that nothing keeps."""
    first_at: datetime | None = None
    """When the first of them goes."""
    bytes_freed: int
    """Of their files, as far as known."""
    unmeasured: int
    """How many of them have a size that is not known yet."""
    not_counted: str = NOT_COUNTED
    """What the rule cannot know."""

"""What the models of requests and answers have in common. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
)
from pydantic_core import PydanticCustomError

Item = TypeVar("Item")


def written_out(moment: object) -> object:
    """Refuses a number, which pydantic would take for seconds since 1970."""
    try:
        float(str(moment))
    except ValueError:
        return moment
    raise PydanticCustomError("moment", "must be written as 2026-03-01T09:30:00Z; without a zone it is UTC")


Moment = Annotated[datetime, BeforeValidator(written_out)]
"""A point in time in a request."""


class View(BaseModel):
    """What the API answers: field docs go into OpenAPI; a newer server may add fields."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        extra="ignore",
        json_schema_serialization_defaults_required=True,  # they are always there
    )


class Page(View, Generic[Item]):
    items: list[Item]
    next_cursor: str | None = None
    """Give it as `cursor` for the items that follow; null at the end."""


class Body(BaseModel):
    """What a verb is told: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

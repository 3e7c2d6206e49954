"""Base models of requests and responses. Imports pydantic only: the client uses this module."""

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


def refuse_numbers(moment: object) -> object:
    """Refuses a number, which pydantic would read as seconds since 1970."""
    try:
        float(str(moment))
    except ValueError:
        return moment
    raise PydanticCustomError("moment", "must be written as 2026-03-01T09:30:00Z; without a zone it is UTC")


Moment = Annotated[datetime, BeforeValidator(refuse_numbers)]
"""A point in time in a request."""


class View(BaseModel):
    """A response of the API. Field docstrings go into OpenAPI. A newer server may add fields."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        extra="ignore",
        json_schema_serialization_defaults_required=True,  # responses always have them
    )


class Page(View, Generic[Item]):
    items: list[Item]
    next_cursor: str | None = None
    """Pass it as `cursor` to get the next page; null on the last one."""


class Body(BaseModel):
    """The body of a request. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

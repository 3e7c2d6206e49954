"""Base models of requests and responses. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    field_validator,
    model_validator,
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


Owner = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,99}$")]
"""The name of somebody who has tokens."""
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


class Patch(Body):
    """The body of a change: fields that are left out keep their values. At least one is needed, and none is null."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("give a value, or leave it out")
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.model_fields_set:
            *first, last = type(self).model_fields
            fields = f"{', '.join(first)} or {last}"
            raise PydanticCustomError("nothing_given", "give {fields}", {"fields": fields})
        return self

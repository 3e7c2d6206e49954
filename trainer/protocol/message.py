"""The base class of all stored or sent records."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A stored or sent record. Reading ignores unknown fields, which a newer version may have added."""

    model_config = ConfigDict(extra="ignore", frozen=True)

"""What every stored or sent record is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A stored or sent record: reading ignores fields a newer version may have added."""

    model_config = ConfigDict(extra="ignore", frozen=True)

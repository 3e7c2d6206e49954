"""What a dataset's owner should know: decisions that were made for them, and data that could not be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """One thing to know about a dataset."""

    code: str
    """Stable, for programs, for example `splits_together`."""
    message: str
    """A sentence for people, with what to do."""

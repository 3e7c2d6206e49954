"""What the control plane tells a running attempt."""

from __future__ import annotations

from typing import Literal

from trainer.protocol.message import Message

Action = Literal["cancel", "pause"]
ACTIONS: tuple[Action | None, ...] = (None, "pause", "cancel")
"""By weight: where two are wanted at once the later one wins."""


class Command(Message):
    """What the service wants a running attempt to do; the run tag `rcmae.command`."""

    attempt: int
    generation: int
    """Rises with each command of an attempt."""
    action: Action


class SearchOrders(Message):
    """What a running search is to do; the run tag `rcmae.search`, written whenever it changes."""

    trials: int
    concurrency: int
    max_failed: int
    max_hours: float | None = None
    draining: bool = False
    """Start no other trial; those that run finish."""
    stopped: tuple[int, ...] = ()
    """Numbers of trials that are to end now, as they are."""

"""Commands and orders from the control plane to a running attempt."""

from __future__ import annotations

from typing import Literal

from trainer.protocol.message import Message

Action = Literal["cancel", "pause", "preempt"]
"""Why an attempt stores a checkpoint and leaves early: a command of the service, or `preempt`, because its processes
are about to be ended from outside."""
ACTIONS: tuple[Action | None, ...] = (None, "preempt", "pause", "cancel")
"""In order of precedence: if ranks want different actions, the later one wins."""


class Command(Message):
    """An action that a running attempt is to take; the run tag `rcmae.command`."""

    attempt: int
    generation: int
    """Increases with each command to an attempt."""
    action: Literal["cancel", "pause"]


class SearchOrders(Message):
    """The current limits of a running search; the run tag `rcmae.search`, written whenever they change."""

    trials: int
    concurrency: int
    max_failed: int
    max_hours: float | None = None
    draining: bool = False
    """Start no new trials, and let running ones finish."""
    stopped: tuple[int, ...] = ()
    """Numbers of trials that are to stop now."""

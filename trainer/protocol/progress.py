"""The progress that a running attempt reports, and what it is doing."""

from __future__ import annotations

from typing import Final, Literal

from trainer.protocol.message import Message

Phase = Literal[
    "opening", "compiling", "training", "evaluating", "storing", "reading", "checking", "writing", "registering"
]
"""`opening`: reading the dataset and the checkpoint; `compiling`: up to the end of the attempt's first step; `storing`:
waiting for a checkpoint to be stored. An import is `reading` weights, `checking` that they compute the same, `writing`
all formats and `registering` them."""
TRAINING: Final[Phase] = "training"
"""The only phase in which steps must follow each other: the others take as long as they take."""
IMPORTING: Final[tuple[Phase, ...]] = ("reading", "checking", "writing", "registering")
"""The phases of an import, in their order."""
SLOW_STEPS: Final = 3
"""A step that takes this many times as long as the slowest one so far is not slow but stuck."""


class Activity(Message):
    """What an attempt was doing at its last heartbeat; the run tag `rcmae.activity`."""

    attempt: int
    phase: str
    """A `Phase`, perhaps one of a newer version."""
    step: int
    """Optimiser steps done."""
    unchanged_s: float
    """Seconds since the attempt entered this phase, or did this step. By its own clock, so that nothing counts that
    only delays heartbeats."""
    slowest_step_s: float = 0.0
    """Seconds that its slowest step has taken."""

    def stall(self, limit_s: float) -> str | None:
        """A sentence that says where training stands still, if it does so for longer than the limit."""
        if self.phase != TRAINING or self.unchanged_s <= max(limit_s, SLOW_STEPS * self.slowest_step_s):
            return None
        return f"Training stood still at step {self.step} for {self.unchanged_s:.0f} s, and the attempt was stopped."


class Newest(Message):
    """An attempt's newest metrics; the run tag `rcmae.newest`."""

    attempt: int
    step: int
    values: dict[str, float]
    """The newest value of every metric that the attempt has logged."""
    images_per_s: float | None = None
    """Wall-clock rate since the first record, evaluations and checkpoints included; None before the second record."""

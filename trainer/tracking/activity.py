"""What an attempt is doing, as its heartbeats tell it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from trainer.protocol.progress import TRAINING, Activity, Phase


class _Standing(NamedTuple):
    """Phase and step, and since when they have been the same."""

    phase: Phase
    step: int
    since: float


class ActivityTracker:
    """Keeps what this process is doing: the thread that works writes it, the one that sends heartbeats reads it."""

    def __init__(self) -> None:
        self._standing: _Standing | None = None
        """Replaced as a whole, so that no reader sees a part of a change."""
        self._slowest_step_s = 0.0

    def enter(self, phase: Phase) -> None:
        """The phase that begins now."""
        self._standing = _Standing(phase, self._standing.step if self._standing else 0, monotonic())

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A phase that interrupts the present one."""
        interrupted = self._standing.phase if self._standing else phase
        self.enter(phase)
        yield
        self.enter(interrupted)

    def reached(self, step: int) -> None:
        """This optimiser step is done, and training goes on."""
        now = monotonic()
        if self._standing:
            self._slowest_step_s = max(self._slowest_step_s, now - self._standing.since)
        self._standing = _Standing(TRAINING, step, now)

    def activity(self, attempt: int) -> Activity | None:
        """What the attempt is doing now; None if it has entered no phase, as a search never does."""
        standing = self._standing
        if standing is None:
            return None
        return Activity(
            attempt=attempt,
            phase=standing.phase,
            step=standing.step,
            unchanged_s=round(monotonic() - standing.since, 3),
            slowest_step_s=round(self._slowest_step_s, 3),
        )

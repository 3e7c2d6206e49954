"""How long something has stayed as it is, by this process's own looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

LONGEST_GAP_S: Final = 30.0
"""Longest time between two looks that counts, unless they are to be further apart. In a longer one this process was
suspended, or could not look: what it looks at may have been suspended with it, and what changed was not seen."""


@dataclass
class _Seen:
    value: object
    looked_at: float
    seconds: float = 0.0


class Watch:
    """Counts the time between looks that see the same value.

    No clock that can be set is read, and nothing is stored: another process, or this one after a restart, begins to
    count anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, longest_gap_s: float = LONGEST_GAP_S) -> None:
        self._clock, self._longest_gap_s = clock, longest_gap_s
        self._seen: dict[tuple[str, int], dict[Hashable, _Seen]] = {}
        self._lock = threading.Lock()
        """The loop and the workers look, each on a thread of its own."""

    def look(self, attempt: tuple[str, int], what: Hashable, value: object) -> timedelta:
        """Record a look at one thing about an attempt of a job; gives the time for which it has had this value."""
        with self._lock:
            moment, things = self._clock(), self._seen.setdefault(attempt, {})
            seen = things.get(what)
            if seen is None or seen.value != value:
                seen = things[what] = _Seen(value, moment)
            gap = moment - seen.looked_at
            if gap <= self._longest_gap_s:
                seen.seconds += gap
            seen.looked_at = moment
            return timedelta(seconds=seen.seconds)

    def keep(self, attempts: Collection[tuple[str, int]]) -> None:
        """Forget all other attempts."""
        with self._lock:
            for attempt in self._seen.keys() - set(attempts):
                del self._seen[attempt]

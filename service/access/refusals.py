"""Keeps requests without a valid token from filling the audit log, which nobody can empty."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger()

LINES_A_MINUTE: Final = 60
"""Entries that all addresses together may add in one minute, for each process."""
KEPT: Final = 10_000
"""Counts that are kept; beyond that the oldest are forgotten."""


def minute_now() -> int:
    """The number of the current minute."""
    return int(time.time() // 60)


@dataclass
class _Count:
    """The refused requests of one address for one action, with tokens of one owner."""

    minute: int
    """When the last entry was written, or would have been."""
    unrecorded: int = 0
    """Requests since then that have none."""


class Refusals:
    """Decides which refused requests get an entry: for each address, actor and action one a minute, and few in all.

    The entry says how many came since the one before, and the service's log tells of every tenfold number of them.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str, str], _Count] = OrderedDict()
        self._minute, self._lines = 0, 0
        self._lock = threading.Lock()

    def unrecorded(self, address: str, actor: str, action: str) -> int | None:
        """How many requests came since the last entry; None if this one gets no entry either."""
        with self._lock:
            minute = minute_now()
            if minute != self._minute:
                self._minute, self._lines = minute, 0
            count = self._counts.pop((address, actor, action), None)
            due = count is None or count.minute != minute
            count = count or _Count(minute)
            self._counts[address, actor, action] = count
            if len(self._counts) > KEPT:
                self._counts.popitem(last=False)
            if due and self._lines < LINES_A_MINUTE:
                self._lines += 1
                before, count.minute, count.unrecorded = count.unrecorded, minute, 0
                return before
            count.unrecorded += 1
            refused = count.unrecorded
        if str(refused).strip("0") == "1":  # 1, 10, 100 and so on: a flood must not fill this log either
            log.warning("refusals_without_audit_entry", address=address, actor=actor, action=action, refused=refused)
        return None

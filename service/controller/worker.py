"""A thread that repeats one piece of the controller's work for as long as this process holds the lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from service.controller.lease import Lease, LeaseLost

log = structlog.get_logger()

LONGEST_PAUSE_S: Final = 10.0
STANDBY_S: Final = 1.0
"""Pause between two looks at a lease that another process holds."""


class Worker:
    """The loop's rounds, the removals and the sweeps each have one: none waits for another's I/O."""

    def __init__(
        self, name: str, lease: Lease, work: Callable[[], None], pause_s: float, wake: threading.Event
    ) -> None:
        """``work`` is called every ``pause_s`` seconds, and at once when ``wake`` is set."""
        self.name, self._lease, self._work, self._pause_s, self._wake = name, lease, work, pause_s, wake
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._failures = 0
        self.finished_at = time.monotonic()
        """When ``work`` last returned, or this process last found that it does not hold the lease."""

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Return after the present piece of work; `join` waits for that."""
        self._ended.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended; work that takes longer goes on without the lease, and can write nothing more."""
        if self._thread.ident is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("work_left_unfinished", worker=self.name, waited_s=round(timeout_s, 1))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended.is_set():
            pause = self._pause_s
            try:
                if self._lease.held():
                    self._work()
                else:
                    pause = min(pause, STANDBY_S)
            except LeaseLost as error:
                log.warning("round_given_up", worker=self.name, detail=str(error))
            except Exception:  # the thread must outlive any failure of its work; readiness shows a loop that is stuck
                log.exception("round_failed", worker=self.name, failures=self._failures)
                pause = min(LONGEST_PAUSE_S, pause * 2.0**self._failures)
                self._failures = min(self._failures + 1, 10)
            else:
                self.finished_at, self._failures = time.monotonic(), 0
            self._wake.wait(pause)
            self._wake.clear()

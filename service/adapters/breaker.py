"""What keeps a dependency that hangs or fails from holding up its callers: a circuit breaker and a limit on calls."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar, Final, Self

import structlog

log = structlog.get_logger()

LONGEST_PAUSE_S: Final = 10.0
WAIT_S: Final = 2.0
"""How long a call waits for one of the calls before it to end."""


class Unreachable(Exception):
    """A dependency did not respond, or refused the call."""

    dependency: ClassVar[str]
    """What is unreachable, for people."""
    retry_after_s: int = 2
    """Whole seconds after which another call may succeed."""


class Breaker:
    """While a dependency does not answer, one call reaches it after 1, 2, 4 … 10 s, and the others fail at once."""

    def __init__(
        self,
        name: str,
        failure: type[Unreachable],
        clock: Callable[[], float] = time.monotonic,
        refusal: type[Unreachable] | tuple[()] = (),
    ) -> None:
        """``failure``: raised where it does not answer; ``refusal``: subclasses of it that are answers."""
        self.name = name
        self._failure, self._refusal, self._clock = failure, refusal, clock
        self._failures, self._next = 0, 0.0
        self._lock = threading.Lock()
        self.error: str | None = None
        """Its last error; None while it answers."""

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Wraps a call, whose errors pass through; raises ``failure`` instead of making a call that is not due."""
        probe = self._enter()
        try:
            yield
        except self._failure as error:
            if isinstance(error, self._refusal):  # concerns this call alone: others are answered
                self._answered()
            else:
                self._failed(str(error), probe)
            raise
        except BaseException:  # says nothing about the dependency
            if probe:
                self._next = 0.0
            raise
        self._answered()

    def check(self) -> None:
        """Raises ``failure`` if a call is not due."""
        text, pause = self.error, self._next - self._clock()
        if text is not None and pause > 0:
            error = self._failure(text)
            error.retry_after_s = math.ceil(pause)
            raise error

    def due(self) -> None:
        """Let the next call be made at once, because the dependency has been seen to answer."""
        with self._lock:
            self._next = 0.0

    def _enter(self) -> bool:
        """Begins a call. Returns whether it is the one that finds out whether the dependency answers again."""
        with self._lock:
            self.check()
            probe = self.error is not None
            if probe:  # the next one, unless this one ends before
                self._next = self._clock() + LONGEST_PAUSE_S
            return probe

    def _failed(self, error: str, probe: bool) -> None:
        with self._lock:
            outage, self.error = self.error is not None, error
            if outage and not probe:
                return  # it began before the first failure: calls that fail together count once
            if not outage:
                log.warning("unreachable", part=self.name, error=error)
            self._next = self._clock() + min(LONGEST_PAUSE_S, 2.0**self._failures)
            self._failures = min(self._failures + 1, 10)

    def _answered(self) -> None:
        with self._lock:
            if self.error is not None:
                log.info("reachable_again", part=self.name)
            self.error, self._failures, self._next = None, 0, 0.0


class Gate:
    """Lets a bounded number of calls to a dependency go on at a time, for requests that share their threads with
    requests that need no such call: however long it hangs, it holds no more than ``calls`` + ``waiting`` threads.
    """

    def __init__(self, breaker: Breaker, failure: type[Unreachable], calls: int, waiting: int) -> None:
        """``waiting``: calls that wait for another one to end, for at most `WAIT_S`; more of them fail at once."""
        self._breaker, self._failure, self._calls = breaker, failure, calls
        self._free, self._admitted = threading.Semaphore(calls), threading.Semaphore(calls + waiting)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Wraps a call, whose errors pass through; raises ``failure`` where none can be made now."""
        self._breaker.check()
        with self._place(self._admitted, 0), self._place(self._free, WAIT_S), self._breaker.attempt():
            yield

    @contextmanager
    def _place(self, places: threading.Semaphore, wait_s: float) -> Iterator[None]:
        if not places.acquire(timeout=wait_s):
            raise self._failure(f"it has not answered {self._calls} other requests yet")
        try:
            yield
        finally:
            places.release()


class Gated:
    """The base of adapters. A subclass makes every call to its dependency inside ``with self._gate():``."""

    _gate: Callable[[], AbstractContextManager[None]] = nullcontext

    def gated(self, gate: Callable[[], AbstractContextManager[None]]) -> Self:
        """The same adapter, with the same connections, whose calls go through a gate."""
        other = copy.copy(self)
        other._gate = gate  # noqa: SLF001 - its own class
        return other

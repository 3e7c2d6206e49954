"""The services that the controller depends on, each with its own back-off while it does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import structlog

from service.adapters.mlflow_connection import MlflowRefused, MlflowUnreachable
from service.adapters.ray_cluster import ClusterRefused, ClusterUnreachable
from service.adapters.storage import StorageRefused, StorageUnreachable
from service.adapters.studies import StudiesUnreachable

log = structlog.get_logger()

LONGEST_PAUSE_S: Final = 10.0


class Unavailable(Exception):
    """A dependency does not answer, or refuses a call. Nothing is concluded from that: the next round calls again."""


class Refused(Unavailable):
    """A dependency answers, and refuses this one call: others may succeed."""


class Dependency:
    """One dependency. While it does not answer, calls reach it after 1, 2, 4 … 10 s, and fail at once in between."""

    def __init__(
        self,
        name: str,
        failure: type[Exception],
        clock: Callable[[], float] = time.monotonic,
        refusal: type[Exception] | tuple[()] = (),
    ) -> None:
        """``failure``: raised where it does not answer; ``refusal``: subclasses of it that are answers."""
        self.name = name
        self._failure, self._refusal, self._clock = failure, refusal, clock
        self._since: float | None = None
        self._failures, self._next = 0, 0.0
        self._lock = threading.Lock()
        """The loop, the removals and the sweeps ask on threads of their own."""
        self.error: str | None = None
        """Its last error; None while it answers."""

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wraps a call to it; raises `Unavailable` where it does not answer, now or shortly before."""
        if self._clock() < self._next:
            raise Unavailable(f"{self.name} does not answer: {self.error}")
        try:
            yield
        except self._failure as error:
            if isinstance(error, self._refusal):  # concerns this call alone: others are answered
                self._succeeded()
                raise Refused(f"{self.name} refuses: {error}") from error
            self.failed(str(error))
            raise Unavailable(f"{self.name} does not answer: {error}") from error
        self._succeeded()

    def available_for(self) -> timedelta:
        """For how long it has answered without interruption."""
        with self._lock:
            return timedelta(seconds=self._clock() - self._since) if self._since is not None else timedelta(0)

    def failed(self, error: str) -> None:
        """Record that it did not answer."""
        with self._lock:
            if self.error is None:
                log.warning("unreachable", part=self.name, error=error)
            self.error, self._since = error, None
            self._next = self._clock() + min(LONGEST_PAUSE_S, 2.0**self._failures)
            self._failures = min(self._failures + 1, 10)

    def _succeeded(self) -> None:
        with self._lock:
            if self.error is not None:
                log.info("reachable_again", part=self.name)
            self.error, self._failures, self._next = None, 0, 0.0
            if self._since is None:
                self._since = self._clock()


class Dependencies:
    """All dependencies of the controller."""

    def __init__(self) -> None:
        self.ray = Dependency("Ray", ClusterUnreachable, refusal=ClusterRefused)
        self.mlflow = Dependency("MLflow", MlflowUnreachable, refusal=MlflowRefused)
        self.storage = Dependency("the artifact storage", StorageUnreachable, refusal=StorageRefused)
        self.studies = Dependency("the studies' database", StudiesUnreachable)

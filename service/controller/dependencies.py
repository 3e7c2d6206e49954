"""The services that the controller depends on, each with its own back-off while it does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from service.adapters.breaker import Breaker
from service.adapters.mlflow_connection import MlflowRefused, MlflowUnreachable
from service.adapters.ray_cluster import ClusterRefused, ClusterUnreachable
from service.adapters.storage import StorageRefused, StorageUnreachable
from service.adapters.studies import StudiesUnreachable


class Unavailable(Exception):
    """A dependency does not answer, or refuses a call. Nothing is concluded from that: the next round calls again."""


class Refused(Unavailable):
    """A dependency answers, and refuses this one call: others may succeed."""


class Dependency(Breaker):
    """One dependency of the controller, whose loop and workers call it on threads of their own."""

    _since: float | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wraps a call to it; raises `Unavailable` where it does not answer, now or shortly before."""
        try:
            with self.attempt():
                yield
        except self._failure as error:
            if isinstance(error, self._refusal):
                raise Refused(f"{self.name} refuses: {error}") from error
            raise Unavailable(f"{self.name} does not answer: {error}") from error

    def available_for(self) -> timedelta:
        """For how long it has answered without interruption."""
        with self._lock:
            return timedelta(seconds=self._clock() - self._since) if self._since is not None else timedelta(0)

    def _failed(self, error: str, probe: bool) -> None:
        super()._failed(error, probe)
        with self._lock:
            self._since = None

    def _answered(self) -> None:
        super()._answered()
        with self._lock:
            if self._since is None:
                self._since = self._clock()


class Dependencies:
    """All dependencies of the controller."""

    def __init__(self) -> None:
        self.ray = Dependency("Ray", ClusterUnreachable, refusal=ClusterRefused)
        self.mlflow = Dependency("MLflow", MlflowUnreachable, refusal=MlflowRefused)
        self.storage = Dependency("the artifact storage", StorageUnreachable, refusal=StorageRefused)
        self.studies = Dependency("the studies' database", StudiesUnreachable)

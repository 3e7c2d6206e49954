"""Readiness: probes all dependencies of jobs in parallel, with a few seconds for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select

from service.context.app_state import AppState
from service.controller.dependencies import Dependencies
from service.controller.lease import named, view
from service.controller.loop import Reconciler
from service.db.database import DatabaseUnreachable
from service.db.tables import now

LIMIT_S: Final = 3.0
"""How long to wait for each dependency."""


class _Query:
    """One execution of a check, on a thread of its own because it may hang."""

    def __init__(self, name: str, check: Callable[[], list[str]]) -> None:
        self._check = check
        self.started_at = time.monotonic()
        self.problems: list[str] = []
        self.thread = threading.Thread(target=self._run, name=f"ready-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.problems = self._check()
        except Exception as error:  # noqa: BLE001 - any error means that the dependency is not ready
            self.problems = [str(error)]


class Probe:
    """Checks one dependency. While a check hangs no other is started, so that threads do not pile up."""

    def __init__(self, name: str, check: Callable[[], list[str]]) -> None:
        """``check`` returns what is wrong, or raises."""
        self._name, self._check = name, check
        self._lock = threading.Lock()
        self._last: _Query | None = None

    def start(self) -> _Query:
        """Start a check, unless one is running."""
        with self._lock:
            if self._last is None or not self._last.thread.is_alive():
                self._last = _Query(self._name, self._check)
            return self._last

    def problems(self, query: _Query, deadline: float) -> list[str]:
        """What is wrong with the dependency. Waits for the check until ``deadline``, a time of `time.monotonic`."""
        query.thread.join(max(0.0, deadline - time.monotonic()))
        if query.thread.is_alive():
            return [f"{self._name}: no answer for {time.monotonic() - query.started_at:.0f} s"]
        return [f"{self._name}: {problem}" for problem in query.problems]


class Readiness:
    """The probes of everything a running service needs."""

    def __init__(self, state: AppState, reconciler: Reconciler | None, limit_s: float = LIMIT_S) -> None:
        self._state, self._reconciler, self._limit_s = state, reconciler, limit_s
        # Whoever is told that the service is ready may rely on it: the controller, which has waited longer and longer
        # between two tries, tries at once what answers a probe.
        self._dependencies = reconciler.context.dependencies if reconciler else Dependencies()
        self._probes = [
            Probe("database", self._database),
            Probe("MLflow", self._mlflow),
            Probe("Ray", self._ray),
            Probe("storage", self._storage),
            Probe("controller", self._controller),
        ]

    def reasons(self) -> list[str]:
        """Why the service is not ready; empty if it is."""
        deadline = time.monotonic() + self._limit_s
        queries = [(probe, probe.start()) for probe in self._probes]
        return [problem for probe, query in queries for problem in probe.problems(query, deadline)]

    def _database(self) -> list[str]:
        with self._state.database.read() as session:
            session.execute(select(1))
        return []

    def _mlflow(self) -> list[str]:
        self._state.mlflow.ping()
        self._dependencies.mlflow.due()
        return []

    def _ray(self) -> list[str]:
        without_nodes = self._state.ray.shape().without_nodes
        self._dependencies.ray.due()
        return ["no node has joined the cluster yet"] if without_nodes else []

    def _storage(self) -> list[str]:
        self._state.artifacts.ping()
        self._dependencies.storage.due()
        return []

    def _controller(self) -> list[str]:
        """Checks the control loop of this process, which may be a standby; without one, the holder of the lease."""
        settings = self._state.settings
        if self._reconciler:
            stuck = self._reconciler.stuck()
            return [] if stuck is None else [f"the reconciler has not finished a round for {stuck:.0f} s"]
        try:
            with self._state.database.read() as session:
                lease = view(session)
        except DatabaseUnreachable:
            return []  # the database's own probe reports it
        if lease is None or lease.holder is None:
            return ["none is running: start one with `rcmae controller`"]
        if lease.round_at is None:
            return [f"{named(lease.holder)} has not finished a round yet"]
        age = (now() - lease.round_at).total_seconds()  # by the clocks of two hosts, which may differ by seconds
        return (
            [f"{named(lease.holder)} has not finished a round for {age:.0f} s"] if age > settings.stuck_after_s else []
        )

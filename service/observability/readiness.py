"""Whether all that jobs need is there: asked at the same time, and each given a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select

from service.context.app_state import AppState
from service.controller.lease import named, view
from service.controller.loop import Reconciler
from service.db.database import DatabaseUnreachable
from service.db.tables import now

LIMIT_S: Final = 3.0


class _Question:
    """One time that something is asked, on a thread that may hang."""

    def __init__(self, name: str, ask: Callable[[], list[str]]) -> None:
        self._ask = ask
        self.begun = time.monotonic()
        self.reasons: list[str] = []
        self.thread = threading.Thread(target=self._run, name=f"ready-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.reasons = self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a reason
            self.reasons = [str(error)]


class Probe:
    """Asks one part how it is. While it hangs nothing more is asked of it: its threads do not pile up."""

    def __init__(self, name: str, ask: Callable[[], list[str]]) -> None:
        """``ask`` gives what is wrong, or raises it."""
        self._name, self._ask = name, ask
        self._lock = threading.Lock()
        self._last: _Question | None = None

    def start(self) -> _Question:
        """Ask, or join who is asking already."""
        with self._lock:
            if self._last is None or not self._last.thread.is_alive():
                self._last = _Question(self._name, self._ask)
            return self._last

    def answer(self, question: _Question, until: float) -> list[str]:
        """What is wrong, as far as it is known by then (of `time.monotonic`)."""
        question.thread.join(max(0.0, until - time.monotonic()))
        if question.thread.is_alive():
            return [f"{self._name}: no answer for {time.monotonic() - question.begun:.0f} s"]
        return [f"{self._name}: {reason}" for reason in question.reasons]


class Readiness:
    """All that a running service is asked for."""

    def __init__(self, parts: AppState, reconciler: Reconciler | None, limit_s: float = LIMIT_S) -> None:
        self._parts, self._reconciler, self._limit_s = parts, reconciler, limit_s
        self._probes = [
            Probe("database", self._database),
            Probe("MLflow", self._mlflow),
            Probe("Ray", self._ray),
            Probe("storage", self._storage),
            Probe("controller", self._controller),
        ]

    def reasons(self) -> list[str]:
        """Why the service is not ready; nothing where it is."""
        until = time.monotonic() + self._limit_s
        asked = [(probe, probe.start()) for probe in self._probes]
        return [reason for probe, question in asked for reason in probe.answer(question, until)]

    def _database(self) -> list[str]:
        with self._parts.database.read() as session:
            session.execute(select(1))
        return []

    def _mlflow(self) -> list[str]:
        self._parts.mlflow.ping()
        return []

    def _ray(self) -> list[str]:
        return [] if self._parts.ray.shape().cpus else ["no node has joined the cluster yet"]

    def _storage(self) -> list[str]:
        self._parts.artifacts.ping()
        return []

    def _controller(self) -> list[str]:
        """Of the loop in this process, which may be one that stands by; without one, of whoever holds the lease."""
        settings = self._parts.settings
        if self._reconciler:
            stuck = self._reconciler.stuck()
            return [] if stuck is None else [f"the reconciler has not finished a round for {stuck:.0f} s"]
        try:
            with self._parts.database.read() as session:
                found = view(session)
        except DatabaseUnreachable:
            return []  # which is told already
        if found is None or found.holder is None:
            return ["none is running: start one with `rcmae controller`"]
        if found.round_at is None:
            return [f"{named(found.holder)} has not finished a round yet"]
        age = (now() - found.round_at).total_seconds()  # of two hosts' clocks, which may differ by seconds
        return (
            [f"{named(found.holder)} has not finished a round for {age:.0f} s"] if age > settings.stuck_after_s else []
        )

"""What a service finds out about itself and its jobs when somebody asks for its metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from service.context.app_state import AppState
from service.controller.lease import view
from service.controller.loop import Reconciler
from service.db.tables import now
from service.jobs import repository
from service.jobs.schemas import State
from service.observability.readiness import Probe
from trainer.spec.job import Kind

LIMIT_S: Final = 3.0
"""For the database: Prometheus itself waits for ten seconds."""
WAITING: Final = (State.QUEUED, State.RECOVERING)
RUNNING: Final = {
    "images_per_s": ("rcmae_job_images_per_second", "Images a second of a running job."),
    "loss": ("rcmae_job_loss", "Training loss of a running job."),
    "epoch": ("rcmae_job_epoch", "Epochs that a running job has done."),
}
"""Gauges of each running job, by the name in its progress."""


@dataclass(frozen=True)
class Snapshot:
    """The database's part, read in one transaction."""

    job_counts: Mapping[tuple[str, str], repository.StateCount]
    """By state and kind."""
    running: Mapping[str, Mapping[str, Any]]
    """Progress of running jobs by their ids."""
    round_at: datetime | None


class ServiceCollector:
    """A service's own metrics, worked out when they are asked for."""

    def __init__(self, parts: AppState, reconciler: Reconciler | None) -> None:
        """``reconciler``: None where the controller's loop runs in another process."""
        self._parts, self._reconciler = parts, reconciler
        self._probe = Probe("database", self._read)
        self._snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics of now; those of the database are absent while it does not answer."""
        if self._reconciler:
            yield from _of_loop(self._reconciler)
        question = self._probe.start()
        up = not self._probe.answer(question, time.monotonic() + LIMIT_S)
        yield GaugeMetricFamily("rcmae_database_up", "1 where the database answers.", value=float(up))
        if up and self._snapshot:
            yield from _of_jobs(self._snapshot)

    def _read(self) -> list[str]:
        """Look into the database; nothing is wrong where it answers."""
        with self._parts.database.read() as session:
            lease = view(session)
            self._snapshot = Snapshot(
                job_counts=repository.count_by_state(session),
                running=repository.running_progress(session),
                round_at=lease.round_at if lease else None,
            )
        return []


def _of_loop(reconciler: Reconciler) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "rcmae_reconcile_lag_seconds",
        "Since the loop of this process ended a round, or stood by.",
        value=reconciler.lag(),
    )
    yield GaugeMetricFamily(
        "rcmae_lease_held", "1 where this process is the controller.", value=float(reconciler.context.lease.held())
    )
    away = GaugeMetricFamily(
        "rcmae_dependency_away", "1 where the controller was refused or not answered.", labels=["part"]
    )
    needs = reconciler.context.dependencies
    for part, need in (("ray", needs.ray), ("mlflow", needs.mlflow), ("storage", needs.storage)):
        away.add_metric([part], float(need.error is not None))
    yield away


def _of_jobs(snapshot: Snapshot) -> Iterator[Metric]:
    moment = now()
    jobs = GaugeMetricFamily("rcmae_jobs", "Jobs by their state and kind.", labels=["state", "kind"])
    for state in State:
        for kind in Kind:
            found = snapshot.job_counts.get((state.value, kind))
            jobs.add_metric([state.value, kind], found.count if found else 0)
    yield jobs
    oldest = GaugeMetricFamily(
        "rcmae_oldest_waiting_seconds", "For how long the job has waited that waits longest.", labels=["state"]
    )
    for state in WAITING:
        since = min(
            (crowd.since for (found, _), crowd in snapshot.job_counts.items() if found == state), default=moment
        )
        oldest.add_metric([state.value], _age(since, moment))
    yield oldest
    if snapshot.round_at:
        yield GaugeMetricFamily(
            "rcmae_controller_round_age_seconds",
            "Since the controller, whichever process it is, ended a round, as the database has it.",
            value=_age(snapshot.round_at, moment),
        )
    for name, (metric, text) in RUNNING.items():
        family = GaugeMetricFamily(metric, text, labels=["job_id"])
        for job_id, progress in snapshot.running.items():
            if progress.get(name) is not None:
                family.add_metric([job_id], progress[name])
        yield family


def _age(since: datetime, moment: datetime) -> float:
    """Never below zero: the clocks of two hosts differ."""
    return max(0.0, (moment - since).total_seconds())

"""Metrics that are collected when Prometheus scrapes: about the service, its controller and its jobs."""

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
from service.jobs.state import State
from service.observability.readiness import Probe
from trainer.spec.job import Kind

LIMIT_S: Final = 3.0
"""How long to wait for the database. Prometheus' own limit is ten seconds."""
WAITING: Final = (State.QUEUED, State.RECOVERING)
RUNNING: Final = {
    "images_per_s": ("rcmae_job_images_per_second", "Images per second of a running job."),
    "loss": ("rcmae_job_loss", "Training loss of a running job."),
    "epoch": ("rcmae_job_epoch", "Epochs completed by a running job."),
}
"""Gauges of each running job, by the field of its progress."""


@dataclass(frozen=True)
class Snapshot:
    """What the metrics need from the database, read in one transaction."""

    job_counts: Mapping[tuple[str, str], repository.StateCount]
    """By state and kind."""
    running: Mapping[str, Mapping[str, Any]]
    """Progress of running jobs, by job id."""
    round_at: datetime | None


class ServiceCollector:
    """Collects the service's metrics for one scrape."""

    def __init__(self, state: AppState, reconciler: Reconciler | None) -> None:
        """``reconciler`` is None if the controller runs in another process."""
        self._state, self._reconciler = state, reconciler
        self._probe = Probe("database", self._read)
        self._snapshot: Snapshot | None = None

    def collect(self) -> Iterator[Metric]:
        """The current metrics. Those from the database are absent while it does not respond."""
        if self._reconciler:
            yield from _controller_metrics(self._reconciler)
        query = self._probe.start()
        up = not self._probe.problems(query, time.monotonic() + LIMIT_S)
        yield GaugeMetricFamily("rcmae_database_up", "1 if the database responds.", value=float(up))
        if up and self._snapshot:
            yield from _job_metrics(self._snapshot)

    def _read(self) -> list[str]:
        """Takes a new snapshot. Returns no problems: it raises if the database does not respond."""
        with self._state.database.read() as session:
            lease = view(session)
            self._snapshot = Snapshot(
                job_counts=repository.count_by_state(session),
                running=repository.running_progress(session),
                round_at=lease.round_at if lease else None,
            )
        return []


def _controller_metrics(reconciler: Reconciler) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "rcmae_reconcile_lag_seconds",
        "Time since this process finished a round of its control loop, or checked the lease as a standby.",
        value=reconciler.lag(),
    )
    yield GaugeMetricFamily(
        "rcmae_lease_held", "1 if this process is the controller.", value=float(reconciler.context.lease.held())
    )
    away = GaugeMetricFamily(
        "rcmae_dependency_away", "1 if the controller's last request failed or was refused.", labels=["part"]
    )
    needs = reconciler.context.dependencies
    for part, need in (("ray", needs.ray), ("mlflow", needs.mlflow), ("storage", needs.storage)):
        away.add_metric([part], float(need.error is not None))
    yield away


def _job_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    moment = now()
    jobs = GaugeMetricFamily("rcmae_jobs", "Jobs by state and kind.", labels=["state", "kind"])
    for state in State:
        for kind in Kind:
            found = snapshot.job_counts.get((state.value, kind))
            jobs.add_metric([state.value, kind], found.count if found else 0)
    yield jobs
    oldest = GaugeMetricFamily(
        "rcmae_oldest_waiting_seconds", "Waiting time of the job that has waited longest.", labels=["state"]
    )
    for state in WAITING:
        since = min((crowd.since for (name, _), crowd in snapshot.job_counts.items() if name == state), default=moment)
        oldest.add_metric([state.value], _age(since, moment))
    yield oldest
    if snapshot.round_at:
        yield GaugeMetricFamily(
            "rcmae_controller_round_age_seconds",
            "Time since the controller, in whichever process, finished a round, according to the database.",
            value=_age(snapshot.round_at, moment),
        )
    for name, (metric, text) in RUNNING.items():
        family = GaugeMetricFamily(metric, text, labels=["job_id"])
        for job_id, progress in snapshot.running.items():
            if progress.get(name) is not None:
                family.add_metric([job_id], progress[name])
        yield family


def _age(since: datetime, moment: datetime) -> float:
    """Seconds since a moment, never negative: the clocks of two hosts may differ."""
    return max(0.0, (moment - since).total_seconds())

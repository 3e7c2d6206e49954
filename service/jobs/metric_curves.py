"""Metric curves of jobs: read from MLflow and down-sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from service.adapters.mlflow_runs import MetricPoint
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.db.tables import Attempt
from service.jobs import repository
from service.jobs.output_schemas import JobsMetricsView, MetricsView, Point


def metrics(app_state: AppState, caller: Caller, job_id: str, keys: Sequence[str], points: int) -> MetricsView:
    """A job's curves by key, all of them without ``keys``.

    Raises the API's 404, and 503 where MLflow is unreachable.
    """
    (series,) = _curves(app_state, caller, [job_id], keys, points).values()
    return MetricsView(series=series)


def metrics_of_jobs(
    app_state: AppState, caller: Caller, job_ids: Sequence[str], keys: Sequence[str], points: int
) -> JobsMetricsView:
    """The curves of several jobs; raises the API's 404 for any that the caller may not see, and 503 likewise."""
    return JobsMetricsView(jobs=_curves(app_state, caller, job_ids, keys, points))


def _curves(
    app_state: AppState, caller: Caller, job_ids: Sequence[str], keys: Sequence[str], points: int
) -> dict[str, dict[str, list[Point]]]:
    with app_state.database.read() as session:
        jobs = [repository.visible_job(session, job_id, caller) for job_id in job_ids]
        restarted = {job.id: job.since_attempt for job in jobs if job.since_attempt > 1}
        attempts = {job_id: session.get(Attempt, (job_id, number)) for job_id, number in restarted.items()}
    # Metrics of attempts that the job no longer builds on are left out.
    since = {job_id: attempt.started_at for job_id, attempt in attempts.items() if attempt}
    job_of_run = {job.run_id: job.id for job in jobs if job.run_id and (job.id in since or job.id not in restarted)}
    empty: dict[str, dict[str, list[Point]]] = {job.id: {key: [] for key in keys} for job in jobs}
    by_run = curves(app_state, {run_id: since.get(job_id) for run_id, job_id in job_of_run.items()}, keys, points)
    return empty | {job_of_run[run_id]: series for run_id, series in by_run.items()}


def curves(
    app_state: AppState, runs: Mapping[str, datetime | None], keys: Sequence[str], points: int
) -> dict[str, dict[str, list[Point]]]:
    """Curves by run and key, all keys without ``keys``. ``runs`` gives the moment from which each run counts.

    Raises `MlflowUnreachable`.
    """
    found: dict[str, dict[str, list[Point]]] = {run_id: {key: [] for key in keys} for run_id in runs}
    for key in keys or _keys(app_state, list(runs)):
        for run_id, history in app_state.mlflow.histories(list(runs), key).items():
            begin = runs[run_id]
            kept = [point for point in history if begin is None or point.time >= begin]
            found[run_id][key] = downsampled(kept, points)
    return found


def _keys(app_state: AppState, run_ids: Sequence[str]) -> list[str]:
    """The metric keys that any of the runs has logged."""
    keys = {key for run_id in run_ids for key in app_state.mlflow.run(run_id).metrics}
    return sorted(key for key in keys if not key.startswith("rcmae/"))


def downsampled(points: Sequence[MetricPoint], count: int) -> list[Point]:
    """At most ``count`` points, each for an equal range of steps; values that are not finite are left out.

    ``points`` are sorted by step. A curve of no more than ``count`` points is returned as it is.
    """
    finite = [point for point in points if math.isfinite(point.value)]
    if len(finite) <= count:
        return [_point([point]) for point in finite]
    first, last = finite[0].step, finite[-1].step
    buckets: list[list[MetricPoint]] = [[] for _ in range(count)]
    for point in finite:
        buckets[(point.step - first) * count // (last - first + 1)].append(point)
    return [_point(bucket) for bucket in buckets if bucket]


def _point(bucket: Sequence[MetricPoint]) -> Point:
    values, newest = [point.value for point in bucket], bucket[-1]
    return Point(step=newest.step, value=newest.value, min=min(values), max=max(values), time=newest.time)

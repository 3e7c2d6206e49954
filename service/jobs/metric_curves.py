"""Curves of jobs: from MLflow, down-sampled here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from service.adapters.mlflow_connection import MlflowUnreachable
from service.adapters.mlflow_runs import MetricPoint
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.db.tables import Attempt
from service.http.problems import unavailable
from service.jobs import repository
from service.jobs.schemas import JobsMetricsView, MetricsView, Point


def metrics(app_state: AppState, caller: Caller, job_id: str, keys: Sequence[str], points: int) -> MetricsView:
    """A job's curves by key, all of them without ``keys``; raises the API's 503 where MLflow does not answer."""
    (found,) = _curves(app_state, caller, [job_id], keys, points).values()
    return MetricsView(series=found)


def metrics_of_jobs(
    app_state: AppState, caller: Caller, job_ids: Sequence[str], keys: Sequence[str], points: int
) -> JobsMetricsView:
    """The same of several jobs; raises the API's 404 where one of them is not there."""
    return JobsMetricsView(jobs=_curves(app_state, caller, job_ids, keys, points))


def _curves(
    app_state: AppState, caller: Caller, job_ids: Sequence[str], keys: Sequence[str], points: int
) -> dict[str, dict[str, list[Point]]]:
    with app_state.database.read() as session:
        jobs = [repository.visible_job(session, job_id, caller) for job_id in job_ids]
        begun = [session.get(Attempt, (job.id, job.since_attempt)) if job.since_attempt > 1 else None for job in jobs]
    # Nothing is shown that an attempt has logged from which the job no longer goes on.
    since = {job.id: attempt.started_at if attempt else None for job, attempt in zip(jobs, begun, strict=True)}
    shown = {job.run_id: job.id for job in jobs if job.run_id and (job.since_attempt == 1 or since[job.id] is not None)}
    found: dict[str, dict[str, list[Point]]] = {job.id: {key: [] for key in keys} for job in jobs}
    of_runs = curves(app_state, {run_id: since[job_id] for run_id, job_id in shown.items()}, keys, points)
    return found | {shown[run_id]: series for run_id, series in of_runs.items()}


def curves(
    app_state: AppState, runs: Mapping[str, datetime | None], keys: Sequence[str], points: int
) -> dict[str, dict[str, list[Point]]]:
    """Curves by run and key, all keys without ``keys``, of what each run has logged since its moment.

    Raises the API's 503 where MLflow does not answer.
    """
    found: dict[str, dict[str, list[Point]]] = {run_id: {key: [] for key in keys} for run_id in runs}
    try:
        for key in keys or _keys(app_state, list(runs)):
            for run_id, history in app_state.mlflow.histories(list(runs), key).items():
                begin = runs[run_id]
                kept = [point for point in history if begin is None or point.time >= begin]
                found[run_id][key] = downsampled(kept, points)
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error
    return found


def _keys(app_state: AppState, run_ids: Sequence[str]) -> list[str]:
    """All that the runs have logged."""
    keys = {key for run_id in run_ids for key in app_state.mlflow.run(run_id).metrics}
    return sorted(key for key in keys if not key.startswith("rcmae/"))


def downsampled(points: Sequence[MetricPoint], count: int) -> list[Point]:
    """At most ``count`` points, each for a range of steps as long as the others'; finite values alone.

    ``points`` are sorted by step. A curve of no more than ``count`` points is given as it is.
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

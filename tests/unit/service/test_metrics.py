"""Curves of so many points, of one job and of several."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import add_job, problem

from service.adapters.mlflow_runs import MetricPoint
from service.db.tables import Attempt
from service.jobs.metric_curves import downsampled

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def curve(values: list[float], every: int = 1) -> list[MetricPoint]:
    return [MetricPoint(n * every, value, NOON + timedelta(seconds=n)) for n, value in enumerate(values)]


def test_a_short_curve_is_given_as_it_is():
    points = downsampled(curve([3.0, 1.0, 2.0], every=10), 3)
    assert [(p.step, p.value, p.min, p.max) for p in points] == [(0, 3, 3, 3), (10, 1, 1, 1), (20, 2, 2, 2)]
    assert points[2].time == NOON + timedelta(seconds=2)
    assert downsampled([], 5) == []


def test_a_long_curve_keeps_its_extremes_and_its_end():
    values = [float(n % 100) for n in range(100_000)]
    values[54_321] = 1e6
    points = downsampled(curve(values), 1000)
    assert len(points) == 1000
    assert (points[-1].step, points[-1].value) == (99_999, 99.0)
    spike = points[543]
    assert (spike.max, spike.min, spike.step, spike.value) == (1e6, 0.0, 54_399, 99.0)


def test_what_is_no_number_is_no_point():
    points = downsampled(curve([1.0, math.nan, math.inf, -math.inf, 2.0]), 2)
    assert [p.value for p in points] == [1.0, 2.0]
    points = downsampled(curve([math.nan, 1.0, 5.0, math.nan, 2.0, math.nan]), 1)
    assert [(p.step, p.value, p.min, p.max) for p in points] == [(4, 2.0, 1.0, 5.0)]


@given(
    steps=st.lists(st.integers(0, 10**9), unique=True, max_size=60).map(sorted),
    count=st.integers(1, 20),
    data=st.data(),
)
def test_every_value_is_in_the_range_of_its_point(steps, count, data):
    values = data.draw(st.lists(st.floats(-1e9, 1e9), min_size=len(steps), max_size=len(steps)))
    history = [MetricPoint(step, value, NOON) for step, value in zip(steps, values, strict=True)]
    points = downsampled(history, count)
    assert len(points) <= count
    assert [p.step for p in points] == sorted(p.step for p in points)
    assert (points[-1].step if points else None) == (steps[-1] if steps else None)
    begin = -1
    for point in points:
        inside = [h.value for h in history if begin < h.step <= point.step]
        assert (min(inside), max(inside), inside[-1]) == (point.min, point.max, point.value)
        begin = point.step


@pytest.fixture
def job_with(database, mlflow):
    def make(**fields: Any) -> str:
        name = f"m-{len(mlflow.runs)}"
        run_id, folder = mlflow.make_run(name, name, {})
        return add_job(database, "running", run_id=run_id, artifact_uri=folder, **fields)

    return make


def test_so_many_points_are_given_as_were_asked_for(api, mlflow, job_with):
    job_id = job_with()
    mlflow.points = {"train/loss": curve([float(n) for n in range(50)])}
    points = api.get(f"/v1/jobs/{job_id}/metrics", params={"key": "train/loss", "points": 5}).json()["series"]
    assert [(p["step"], p["min"], p["max"]) for p in points["train/loss"]] == [
        (9, 0, 9), (19, 10, 19), (29, 20, 29), (39, 30, 39), (49, 40, 49),
    ]  # fmt: skip
    for wrong in (0, 10_001, "many"):
        problem(api.get(f"/v1/jobs/{job_id}/metrics", params={"points": wrong}), 422, "parameter_invalid")


def test_jobs_are_compared_in_one_request(clients, mlflow, job_with):
    one, other = job_with(), job_with()
    mlflow.points = {"train/loss": curve([1.0, 2.0])}
    wanted = {"job": [one, other], "key": ["train/loss", "train/lr"], "points": 1}
    found = clients.alice.get("/v1/metrics", params=wanted).json()["jobs"]
    assert set(found) == {one, other}
    assert [p["value"] for p in found[one]["train/loss"]] == [2.0]
    assert found[other]["train/lr"] == []
    problem(clients.alice.get("/v1/metrics", params=wanted | {"job": [one, "job-none"]}), 404, "job_not_found")
    problem(clients.bob.get("/v1/metrics", params=wanted), 404, "job_not_found")
    problem(clients.alice.get("/v1/metrics", params=wanted | {"job": [one] * 51}), 422, "parameter_invalid")
    problem(clients.alice.get("/v1/metrics", params={"job": one}), 422, "parameter_invalid")
    mlflow.reachable = False
    problem(clients.alice.get("/v1/metrics", params=wanted), 503, "unavailable")


def test_a_job_that_began_again_has_no_curve_of_before(api, database, mlflow, job_with):
    job_id = job_with(attempts=2, since_attempt=2)
    mlflow.points = {"train/loss": curve([1.0, 2.0, 3.0])}
    url = f"/v1/jobs/{job_id}/metrics"
    assert api.get(url, params={"key": "train/loss"}).json()["series"] == {"train/loss": []}
    with database.session() as session:
        session.add(
            Attempt(job_id=job_id, number=2, submission_id="x", state="running", started_at=NOON + timedelta(seconds=1))
        )
    found = api.get(url, params={"key": "train/loss"}).json()["series"]["train/loss"]
    assert [p["value"] for p in found] == [2.0, 3.0]

"""What a run has recorded: its tags and curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request_safe

from trainer.tracking.client import MLFLOW

Curves = dict[str, list[tuple[int, float]]]
"""Values by step, for each metric that was logged."""
CURVE_ENDPOINT = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
CURVE_POINTS = 2500
"""Points read of one curve: the most that MLflow returns."""


@dataclass(frozen=True)
class History:
    """A run's tags, and its curves up to some step."""

    tags: Mapping[str, str]
    curves: Curves


class HistoryReader:
    """Reads runs' histories from MLflow."""

    def __init__(self, tracking_uri: str) -> None:
        self._client = MlflowClient(tracking_uri)

    def read(self, run_id: str, keys: Iterable[str], last_step: int) -> History:
        """A run's tags, and its curves up to ``last_step``; metrics without values are left out.

        If a resumed attempt logged a step again, the latest value counts. Retries for five minutes; raises
        `StorageError` if MLflow stays unreachable or refuses.
        """
        action = f"read the run {run_id}"
        run = MLFLOW.call(action, lambda: self._client.get_run(run_id))
        curves = {key: MLFLOW.call(action, partial(self._curve, run_id, key, last_step)) for key in keys}
        return History(run.data.tags, {key: points for key, points in curves.items() if points})

    def _curve(self, run_id: str, key: str, last_step: int) -> list[tuple[int, float]]:
        """One curve, read from an endpoint that MLflow's client has no method for. It thins out long curves evenly."""
        query = {
            "run_ids": run_id, "metric_key": key, "start_step": 0, "end_step": last_step, "max_results": CURVE_POINTS,
        }  # fmt: skip
        host = get_default_host_creds(self._client.tracking_uri)  # type: ignore[no-untyped-call]  # MLflow leaves these
        answer = http_request_safe(host, CURVE_ENDPOINT, "GET", params=query)  # type: ignore[no-untyped-call]  # untyped
        latest: dict[int, tuple[int, float]] = {}
        for metric in answer.json().get("metrics", []):
            step, point = int(metric.get("step", 0)), (int(metric["timestamp"]), float(metric["value"]))
            if step not in latest or point[0] >= latest[step][0]:
                latest[step] = point
        return [(step, value) for step, (_, value) in sorted(latest.items())]

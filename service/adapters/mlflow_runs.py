"""Runs in MLflow: creating and ending them, commands to attempts, and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from mlflow.entities import LifecycleStage, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request_safe

from service.adapters.mlflow_connection import PAGE, MlflowConnection, absence_allowed, quoted, utc_time
from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.names import (
    TAG_ACTIVITY,
    TAG_ATTEMPT,
    TAG_COMMAND,
    TAG_JOB,
    TAG_NEWEST,
    TAG_NOTICE,
    TAG_OBSERVED,
    TAG_REPLACES,
    TAG_SEARCH,
    TAG_TRIAL_OF,
    heartbeat,
)
from trainer.protocol.parameters import requests
from trainer.protocol.progress import Activity, Newest

EXPERIMENT = "rcmae"
SAMPLE = 2500
"""Values of a curve that are read: the most that MLflow returns."""
OPEN = ("RUNNING", "SCHEDULED")
"""MLflow's status of a run that has not ended."""
HISTORIES = "/api/2.0/mlflow/metrics/get-history-bulk-interval"


@dataclass(frozen=True)
class RunView:
    """A run as it is now."""

    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The newest value of each key."""
    gone: bool = False
    """Whether it was removed from MLflow for good."""

    def heartbeat(self, attempt: int) -> float | None:
        """The time of an attempt's last heartbeat, in seconds since 1970."""
        text = self.tags.get(heartbeat(attempt))
        return float(text) if text else None

    def newest(self) -> Newest | None:
        """The newest progress that an attempt has logged; None if there is none."""
        text = self.tags.get(TAG_NEWEST)
        return Newest.model_validate_json(text) if text else None

    def activity(self, attempt: int) -> Activity | None:
        """What an attempt was doing at its last heartbeat; None if it did not say."""
        text = self.tags.get(TAG_ACTIVITY)
        activity = Activity.model_validate_json(text) if text else None
        return activity if activity and activity.attempt == attempt else None

    def observed(self) -> Command | None:
        """The last command that an attempt acknowledged; None if there is none."""
        text = self.tags.get(TAG_OBSERVED)
        return Command.model_validate_json(text) if text else None


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric."""

    step: int
    value: float
    time: datetime


@dataclass(frozen=True)
class OpenRun:
    """A run of a job, or of a search's trial, that has not ended according to MLflow."""

    run_id: str
    job_id: str
    """For the run of a trial: the search's id."""
    started_at: datetime
    trial: bool = False
    """Whether it is the run of a trial."""


@dataclass(frozen=True)
class TrialRun:
    """The run of a search's trial."""

    run_id: str
    artifact_uri: str
    """The run's artifact folder."""


class MlflowRuns(MlflowConnection):
    """The runs of jobs and trials."""

    def make_run(
        self,
        job_id: str,
        name: str,
        tags: Mapping[str, str],
        known: str | None = None,
        params: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[str, str]:
        """The id and the artifact folder of a job's one run. It is safe to call this again after a lost response.

        ``known`` is the run that the database has for the job. That run is used, whatever other runs carry the job's
        tag, and it is restored if somebody deleted it. A new one is created only if it was removed for good.
        ``params`` are logged once: a later attempt may run with others, which MLflow does not take.
        """
        return self._call(lambda: self._make_run(job_id, name, tags, known, params))

    def _make_run(
        self, job_id: str, name: str, tags: Mapping[str, str], known: str | None, params: Mapping[str, str]
    ) -> tuple[str, str]:
        run = (self._run_or_none(known) if known else None) or self._find_or_create(job_id, name, tags, known)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_run(run.info.run_id)
        for some in requests(params, run.data.params):
            self._client.log_batch(run.info.run_id, params=[Param(name, text) for name, text in some])
        return run.info.run_id, run.info.artifact_uri

    def _find_or_create(self, job_id: str, name: str, tags: Mapping[str, str], removed: str | None) -> Run:
        """A new run for a job, or the one created earlier if that response was lost."""
        experiment, own_tags = self._experiment(), {TAG_JOB: job_id}
        if removed:  # copies of that run carry the job's tag, but not this one
            own_tags[TAG_REPLACES] = removed
        query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in own_tags.items())
        oldest = ["attributes.start_time ASC"]  # a copy is younger than its original
        existing = self._client.search_runs([experiment], query, ViewType.ALL, max_results=1, order_by=oldest)
        return (
            existing[0] if existing else self._client.create_run(experiment, run_name=name, tags={**tags, **own_tags})
        )

    def _run_or_none(self, run_id: str) -> Run | None:
        """A run, which may be a deleted one; None if it was removed for good."""
        with absence_allowed():
            return self._client.get_run(run_id)
        return None

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(EXPERIMENT))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return self._experiment()

    def run(self, run_id: str) -> RunView:
        """The tags and newest metrics of a run; `gone` if it was removed for good."""
        return self._call(lambda: self._run(run_id))

    def _run(self, run_id: str) -> RunView:
        run = self._run_or_none(run_id)
        return RunView(run.data.tags, run.data.metrics) if run else RunView({}, {}, gone=True)

    def views(self, run_ids: Sequence[str]) -> dict[str, RunView]:
        """The tags and newest metrics of several runs, by their ids; runs that were deleted are left out."""
        if not run_ids:
            return {}
        listed = ", ".join(f"'{quoted(run_id)}'" for run_id in run_ids)
        runs = self._call(lambda: self._runs(f"attributes.run_id IN ({listed})"))
        return {run.info.run_id: RunView(run.data.tags, run.data.metrics) for run in runs}

    def command(self, run_id: str, command: Command) -> None:
        """Send a command to the run's attempt, which polls for it."""
        self._call(lambda: self._client.set_tag(run_id, TAG_COMMAND, command.model_dump_json()))

    def order(self, run_id: str, orders: SearchOrders) -> None:
        """Send orders to a running search; they replace earlier ones."""
        self._call(lambda: self._client.set_tag(run_id, TAG_SEARCH, orders.model_dump_json()))

    def fence(self, run_id: str, attempt: int) -> None:
        """Make this attempt the run's current one: an earlier attempt that still lives reads this and exits.

        It also clears the earlier attempt's notice.
        """
        tags = [RunTag(TAG_ATTEMPT, str(attempt)), RunTag(TAG_NOTICE, "")]
        self._call(lambda: self._client.log_batch(run_id, tags=tags))

    def end_run(self, run_id: str, status: str) -> None:
        """Set the status of a run: `FINISHED`, `FAILED`, `KILLED`, `SCHEDULED` (paused) or `RUNNING` (resumed).

        A deleted run is left alone.
        """
        self._call(lambda: self._end_run(run_id, status))

    def _end_run(self, run_id: str, status: str) -> None:
        with absence_allowed():
            if self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                self._client.update_run(run_id, status=status)

    def open_runs(self) -> list[OpenRun]:
        """All runs of jobs and trials whose status is running or scheduled (paused)."""
        runs = self._call(lambda: [run for status in OPEN for run in self._runs(f"attributes.status = '{status}'")])
        return [
            OpenRun(run.info.run_id, job_id, utc_time(run.info.start_time), trial=TAG_TRIAL_OF in run.data.tags)
            for run in runs
            if (job_id := run.data.tags.get(TAG_JOB) or run.data.tags.get(TAG_TRIAL_OF))
        ]

    def trial_runs(self, job_id: str) -> list[TrialRun]:
        """The runs of a search's trials, including deleted ones, whose files may still exist."""
        runs = self._call(lambda: self._runs(f"tags.`{TAG_TRIAL_OF}` = '{quoted(job_id)}'", ViewType.ALL))
        return [TrialRun(run.info.run_id, run.info.artifact_uri) for run in runs]

    def _runs(self, query: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        """All runs that match a query."""
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment()], query, view, max_results=PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted; `mlflow gc` removes it later. Its files are not touched."""
        self._call(lambda: self._delete_run(run_id))

    def _delete_run(self, run_id: str) -> None:
        with absence_allowed():
            if self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                self._client.delete_run(run_id)

    def histories(self, run_ids: Sequence[str], key: str) -> dict[str, list[MetricPoint]]:
        """A metric's points of each run, by step. If a resumed attempt logged a step again, the latest value counts.

        MLflow returns at most `SAMPLE` values, evenly spaced, including the first and the last: reading all of 100,000
        would keep its one worker busy for seconds, and this takes some tenths of a second.
        """
        latest: dict[str, dict[int, tuple[int, float]]] = {run_id: {} for run_id in run_ids}
        for metric in self._call(lambda: self._sampled(run_ids, key)) if run_ids else ():
            points, step, moment = latest[metric["run_id"]], int(metric.get("step", 0)), int(metric["timestamp"])
            if step not in points or moment >= points[step][0]:
                points[step] = (moment, float(metric["value"]))
        return {
            run_id: [MetricPoint(step, value, utc_time(ms)) for step, (ms, value) in sorted(points.items())]
            for run_id, points in latest.items()
        }

    def _sampled(self, run_ids: Sequence[str], key: str) -> list[dict[str, Any]]:
        """Requests the endpoint directly: MLflow's client has no method for it."""
        params = [*(("run_ids", run_id) for run_id in run_ids), ("metric_key", key), ("max_results", SAMPLE)]
        host = get_default_host_creds(self.url)  # type: ignore[no-untyped-call]  # MLflow leaves them without types
        response = http_request_safe(host, HISTORIES, "GET", params=params)  # type: ignore[no-untyped-call]
        metrics: list[dict[str, Any]] = response.json().get("metrics", [])
        return metrics

"""MLflow: runs, metrics, commands and the registry of backbones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

# The client waits 120 seconds for an answer unless told otherwise, and the reconciler must not hang that long. It sends
# nothing twice by itself: what was created before its answer was lost would be created again.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import LifecycleStage, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.tracking import MlflowClient

from trainer.spec.job import Command
from trainer.spec.names import TAG_ATTEMPT, TAG_COMMAND, TAG_JOB, TAG_NOTICE, TAG_OBSERVED, heartbeat

T = TypeVar("T")

EXPERIMENT = "rcmae"
PAGE = 1000
REFUSALS = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}
"""What MLflow says of a run that was removed, and of a change to one that was deleted."""


class MlflowUnreachable(Exception):
    """MLflow did not answer, or refused."""


class MlflowRefused(MlflowUnreachable):
    """MLflow answered that what was asked for is not there, or cannot be done with it: other requests may be fine."""


@dataclass(frozen=True)
class RunView:
    """A run as it is now."""

    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each key."""

    def heartbeat(self, attempt: int) -> float | None:
        """When this attempt last showed life, in seconds since 1970."""
        return self.metrics.get(heartbeat(attempt))

    def observed(self) -> Command | None:
        text = self.tags.get(TAG_OBSERVED)
        return Command.model_validate_json(text) if text else None


@dataclass(frozen=True)
class MetricPoint:
    step: int
    value: float
    time: datetime


@dataclass(frozen=True)
class Version:
    """A registered version of a backbone."""

    name: str
    version: int
    created_at: datetime
    tags: Mapping[str, str]
    source: str


@dataclass(frozen=True)
class OpenRun:
    """A run of a job that MLflow shows as running."""

    run_id: str
    job_id: str
    started_at: datetime


class MlflowStore:
    """One MLflow server. Every method raises `MlflowUnreachable` where it does not do what was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = MlflowClient(url)

    def ping(self) -> None:
        self._ask(lambda: self._client.search_experiments(max_results=1))

    def make_run(self, job_id: str, name: str, tags: Mapping[str, str]) -> tuple[str, str]:
        """A job's one run: its id and artifact folder. Asked again after an unclear answer, gives the same.

        One that somebody deleted by hand is restored: its checkpoints are the job's.
        """
        return self._ask(lambda: self._make_run(job_id, name, dict(tags)))

    def _make_run(self, job_id: str, name: str, tags: dict[str, str]) -> tuple[str, str]:
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{TAG_JOB}` = '{job_id}'", ViewType.ALL, max_results=1)
        run = found[0] if found else self._client.create_run(experiment, run_name=name, tags=tags | {TAG_JOB: job_id})
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_run(run.info.run_id)
        return run.info.run_id, run.info.artifact_uri

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(EXPERIMENT))
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return self._experiment()

    def run(self, run_id: str) -> RunView:
        run = self._ask(lambda: self._client.get_run(run_id))
        return RunView(run.data.tags, run.data.metrics)

    def command(self, run_id: str, command: Command) -> None:
        """Leave a command for the attempt to read."""
        self._ask(lambda: self._client.set_tag(run_id, TAG_COMMAND, command.model_dump_json()))

    def fence(self, run_id: str, attempt: int) -> None:
        """From now on only this attempt counts: an earlier one that still lives reads it and leaves.

        What the earlier one was troubled by is no trouble of this one.
        """
        tags = [RunTag(TAG_ATTEMPT, str(attempt)), RunTag(TAG_NOTICE, "")]
        self._ask(lambda: self._client.log_batch(run_id, tags=tags))

    def end_run(self, run_id: str, status: str) -> None:
        """Mark the run `FINISHED`, `FAILED`, `KILLED` or, while it is paused, `SCHEDULED`; or `RUNNING` again."""
        self._ask(lambda: self._client.update_run(run_id, status=status))

    def open_runs(self) -> list[OpenRun]:
        """All runs of jobs that are marked as running or, while they are paused, as scheduled."""
        return self._ask(lambda: self._runs_marked("RUNNING") + self._runs_marked("SCHEDULED"))

    def _runs_marked(self, status: str) -> list[OpenRun]:
        found: list[OpenRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment()], f"attributes.status = '{status}'", max_results=PAGE, page_token=token
            )
            found += [
                OpenRun(run.info.run_id, run.data.tags[TAG_JOB], _time(run.info.start_time))
                for run in page
                if TAG_JOB in run.data.tags
            ]
            token = page.token
            if not token:
                return found

    def delete_run(self, run_id: str) -> None:
        """Put a run among MLflow's deleted ones, from where `mlflow gc` takes it; its files are not touched."""
        self._ask(lambda: self._delete_run(run_id))

    def _delete_run(self, run_id: str) -> None:
        with _absence_is_fine():
            if self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                self._client.delete_run(run_id)

    def delete_version(self, version: Version) -> None:
        """Take a version out of the registry, with the logged model behind it; its files are not touched."""
        self._ask(lambda: self._delete_version(version))

    def _delete_version(self, version: Version) -> None:
        model_id = _model_id(version)
        # The version last: while it is there, whoever is interrupted here finds the rest again.
        if model_id:
            with _absence_is_fine():
                self._client.delete_logged_model(model_id)
        with _absence_is_fine():
            self._client.delete_model_version(version.name, str(version.version))

    def history(self, run_id: str, key: str) -> list[MetricPoint]:
        """A metric's points by step. Where a resumed attempt logged a step again, the latest value counts."""
        latest: dict[int, tuple[int, float]] = {}
        for metric in self._ask(lambda: self._client.get_metric_history(run_id, key)):
            if metric.step not in latest or metric.timestamp >= latest[metric.step][0]:
                latest[metric.step] = (metric.timestamp, metric.value)
        return [MetricPoint(step, value, _time(ms)) for step, (ms, value) in sorted(latest.items())]

    def versions(self, name: str) -> list[Version]:
        """All versions of a registered backbone, oldest first; none where it does not exist."""
        return self._versions(f"name = '{_quoted(name)}'")

    def version_of_job(self, name: str, job_id: str) -> Version | None:
        return next((version for version in self.versions(name) if version.tags.get(TAG_JOB) == job_id), None)

    def all_versions(self) -> list[Version]:
        return self._versions(None)

    def _versions(self, condition: str | None) -> list[Version]:
        found: list[Version] = []
        token = None
        while True:
            page = self._ask(partial(self._client.search_model_versions, condition, max_results=PAGE, page_token=token))
            found += [_version(version) for version in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: (version.name, version.version))

    def folder(self, version: Version) -> str | None:
        """Where a version's files lie; None where it is not one of our logged models."""
        model_id = _model_id(version)
        return self._ask(lambda: self._location(model_id)) if model_id else None

    def _location(self, model_id: str) -> str | None:
        with _absence_is_fine():
            return str(self._client.get_logged_model(model_id).artifact_location)
        return None

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except MlflowException as error:
            kind = MlflowRefused if error.error_code in REFUSALS else MlflowUnreachable
            raise kind(_said(error)) from error


@contextmanager
def _absence_is_fine() -> Iterator[None]:
    """Around a question about one thing, or its deletion: that it is not there is no error."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise


def _model_id(version: Version) -> str | None:
    """Of the logged model behind a version; None where there is none."""
    model_id = version.source.removeprefix("models:/")
    return None if model_id == version.source or "/" in model_id else model_id


def _said(error: MlflowException) -> str:
    return str(error).splitlines()[0][:300]


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _version(version: ModelVersion) -> Version:
    return Version(
        name=str(version.name),
        version=int(version.version),
        created_at=_time(version.creation_timestamp),
        tags=dict(version.tags),
        source=str(version.source),
    )

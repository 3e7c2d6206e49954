"""MLflow: runs, metrics, commands and the registry of backbones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

# The client waits 120 seconds for an answer unless told otherwise, and the reconciler must not hang that long. It sends
# nothing twice by itself: what was created before its answer was lost would be created again.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import LifecycleStage, Run, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request_safe

from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.names import (
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
from trainer.protocol.progress import Newest

T = TypeVar("T")

EXPERIMENT = "rcmae"
PAGE = 1000
FOLDERS_KEPT = 10_000
"""Places of logged models that are remembered: they never change."""
SAMPLE = 2500
"""Values of a curve that are read: the most that MLflow gives."""
OPEN = ("RUNNING", "SCHEDULED")
"""What MLflow shows of a run that has not ended."""
HISTORIES = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
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
    gone: bool = False
    """MLflow has it no more: it was removed for good."""

    def heartbeat(self, attempt: int) -> float | None:
        """When this attempt last showed life, in seconds since 1970."""
        return self.metrics.get(heartbeat(attempt))

    def newest(self) -> Newest | None:
        """What an attempt has logged last; None where none has."""
        text = self.tags.get(TAG_NEWEST)
        return Newest.model_validate_json(text) if text else None

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
    """A run of a job, or of a search's trial, that MLflow shows as running."""

    run_id: str
    job_id: str
    """Of a trial's run: the search."""
    started_at: datetime
    trial: bool = False
    """Whether it is a trial's."""


@dataclass(frozen=True)
class TrialRun:
    """The run of a search's trial."""

    run_id: str
    artifact_uri: str
    """Its artifact folder."""


class MlflowStore:
    """One MLflow server. Every method raises `MlflowUnreachable` where it does not do what was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = MlflowClient(url)
        self._folders: dict[str, str] = {}

    def ping(self) -> None:
        self._ask(lambda: self._client.search_experiments(max_results=1))

    def make_run(self, job_id: str, name: str, tags: Mapping[str, str], known: str | None = None) -> tuple[str, str]:
        """A job's one run: its id and artifact folder. Asked again after an unclear answer, gives the same.

        ``known`` is the run that the database has for the job: whatever other runs carry the job's tag, that one is
        used, and restored if somebody deleted it. Only where it was removed for good is another one made.
        """
        return self._ask(lambda: self._make_run(job_id, name, tags, known))

    def _make_run(self, job_id: str, name: str, tags: Mapping[str, str], known: str | None) -> tuple[str, str]:
        run = (self._run_or_none(known) if known else None) or self._made_run(job_id, name, tags, known)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_run(run.info.run_id)
        return run.info.run_id, run.info.artifact_uri

    def _made_run(self, job_id: str, name: str, tags: Mapping[str, str], removed: str | None) -> Run:
        """A new run for a job; the one that was made for it already where the answer was lost."""
        experiment, own = self._experiment(), {TAG_JOB: job_id}
        if removed:  # its copies carry its tags, but do not say that they replace it
            own[TAG_REPLACES] = removed
        condition = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in own.items())
        oldest = ["attributes.start_time ASC"]  # a copy is younger than what it was copied from
        found = self._client.search_runs([experiment], condition, ViewType.ALL, max_results=1, order_by=oldest)
        return found[0] if found else self._client.create_run(experiment, run_name=name, tags={**tags, **own})

    def _run_or_none(self, run_id: str) -> Run | None:
        """A run as it is, also a deleted one; None where it was removed for good."""
        with _absence_is_fine():
            return self._client.get_run(run_id)
        return None

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
        return self._ask(lambda: self._run(run_id))

    def _run(self, run_id: str) -> RunView:
        run = self._run_or_none(run_id)
        return RunView(run.data.tags, run.data.metrics) if run else RunView({}, {}, gone=True)

    def command(self, run_id: str, command: Command) -> None:
        """Leave a command for the attempt to read."""
        self._ask(lambda: self._client.set_tag(run_id, TAG_COMMAND, command.model_dump_json()))

    def order(self, run_id: str, orders: SearchOrders) -> None:
        """Leave for a search what it is to do, instead of what it was told before."""
        self._ask(lambda: self._client.set_tag(run_id, TAG_SEARCH, orders.model_dump_json()))

    def fence(self, run_id: str, attempt: int) -> None:
        """From now on only this attempt counts: an earlier one that still lives reads it and leaves.

        What the earlier one was troubled by is no trouble of this one.
        """
        tags = [RunTag(TAG_ATTEMPT, str(attempt)), RunTag(TAG_NOTICE, "")]
        self._ask(lambda: self._client.log_batch(run_id, tags=tags))

    def end_run(self, run_id: str, status: str) -> None:
        """Mark the run `FINISHED`, `FAILED`, `KILLED` or, while it is paused, `SCHEDULED`; or `RUNNING` again.

        One that somebody deleted stays as it is.
        """
        self._ask(lambda: self._end_run(run_id, status))

    def _end_run(self, run_id: str, status: str) -> None:
        with _absence_is_fine():
            if self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                self._client.update_run(run_id, status=status)

    def open_runs(self) -> list[OpenRun]:
        """All runs of jobs and trials that are marked as running or, while they are paused, as scheduled."""
        found = self._ask(lambda: [run for status in OPEN for run in self._runs(f"attributes.status = '{status}'")])
        return [
            OpenRun(run.info.run_id, job_id, _time(run.info.start_time), trial=TAG_TRIAL_OF in run.data.tags)
            for run in found
            if (job_id := run.data.tags.get(TAG_JOB) or run.data.tags.get(TAG_TRIAL_OF))
        ]

    def trial_runs(self, job_id: str) -> list[TrialRun]:
        """The runs of a search's trials, also those that were deleted: their files may be there still."""
        found = self._ask(lambda: self._runs(f"tags.`{TAG_TRIAL_OF}` = '{_quoted(job_id)}'", ViewType.ALL))
        return [TrialRun(run.info.run_id, run.info.artifact_uri) for run in found]

    def _runs(self, condition: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        """All runs that a condition holds for."""
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment()], condition, view, max_results=PAGE, page_token=token)
            found += page
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
        self._folders.pop(model_id or "", None)

    def histories(self, run_ids: Sequence[str], key: str) -> dict[str, list[MetricPoint]]:
        """A metric's points by step, of each run. Where a resumed attempt logged a step again, the latest value counts.

        Of more than `SAMPLE` values MLflow gives so many, evenly spaced, with the first and the last: all of 100,000
        take seconds of its one worker, and these a few tenths.
        """
        latest: dict[str, dict[int, tuple[int, float]]] = {run_id: {} for run_id in run_ids}
        for metric in self._ask(lambda: self._sampled(run_ids, key)) if run_ids else ():
            points, step, moment = latest[metric["run_id"]], int(metric.get("step", 0)), int(metric["timestamp"])
            if step not in points or moment >= points[step][0]:
                points[step] = (moment, float(metric["value"]))
        return {
            run_id: [MetricPoint(step, value, _time(ms)) for step, (ms, value) in sorted(points.items())]
            for run_id, points in latest.items()
        }

    def _sampled(self, run_ids: Sequence[str], key: str) -> list[dict[str, Any]]:
        """MLflow's client has no method for it."""
        wanted = [*(("run_ids", run_id) for run_id in run_ids), ("metric_key", key), ("max_results", SAMPLE)]
        place = get_default_host_creds(self.url)  # type: ignore[no-untyped-call]  # MLflow leaves them without types
        answer = http_request_safe(place, HISTORIES, "GET", params=wanted)  # type: ignore[no-untyped-call]
        found: list[dict[str, Any]] = answer.json().get("metrics", [])
        return found

    def versions(self, name: str) -> list[Version]:
        """All versions of a registered backbone, oldest first; none where it does not exist."""
        return self._versions(f"name = '{_quoted(name)}'")

    def versions_of_job(self, name: str, job_id: str) -> list[Version]:
        """A job's versions, oldest first: one, and one more each time that it began again after it had registered."""
        return self._versions(f"name = '{_quoted(name)}' AND tags.`{TAG_JOB}` = '{_quoted(job_id)}'")

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

    def aliases(self, name: str) -> dict[str, int]:
        """The versions that a backbone's aliases stand for; none where there is no such backbone."""
        return self._ask(lambda: self._aliases_of(name))

    def _aliases_of(self, name: str) -> dict[str, int]:
        with _absence_is_fine():
            return _numbers(self._client.get_registered_model(name).aliases)
        return {}

    def all_aliases(self) -> dict[str, dict[str, int]]:
        """The same of every backbone, by its name."""
        found: dict[str, dict[str, int]] = {}
        token = None
        while True:
            page = self._ask(partial(self._client.search_registered_models, max_results=PAGE, page_token=token))
            found |= {str(model.name): _numbers(model.aliases) for model in page}
            token = page.token
            if not token:
                return found

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Let an alias stand for a version, whatever it stood for before."""
        self._ask(lambda: self._client.set_registered_model_alias(name, alias, str(number)))

    def delete_alias(self, name: str, alias: str) -> None:
        """Nothing happens where there is none."""
        self._ask(lambda: self._delete_alias(name, alias))

    def _delete_alias(self, name: str, alias: str) -> None:
        with _absence_is_fine():
            self._client.delete_registered_model_alias(name, alias)

    def folder(self, version: Version) -> str | None:
        """Where a version's files lie; None where it is not one of our logged models."""
        model_id = _model_id(version)
        if model_id is None:
            return None
        found = self._folders.get(model_id) or self._ask(lambda: self._location(model_id))
        if found is not None:
            if len(self._folders) >= FOLDERS_KEPT:
                self._folders.clear()
            self._folders[model_id] = found
        return found

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


def _numbers(aliases: Mapping[str, str]) -> dict[str, int]:
    return {alias: int(number) for alias, number in aliases.items()}


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

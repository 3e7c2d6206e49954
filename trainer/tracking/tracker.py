"""The run in MLflow: metrics, tags, commands and the registered backbone. The only place that imports mlflow."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

# A thread must not hang: the client waits 120 seconds for an answer unless told otherwise. It sends nothing twice by
# itself, whatever the environment says: what was created before its answer was lost would be created again.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request_safe

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.names import (
    TAG_ATTEMPT,
    TAG_COMMAND,
    TAG_JOB,
    TAG_NEWEST,
    TAG_OBSERVED,
    TAG_PARENT,
    TAG_SEARCH,
    TAG_TRIAL,
    TAG_TRIAL_OF,
    heartbeat,
)
from trainer.protocol.progress import Newest
from trainer.spec.metric_keys import SAMPLES
from trainer.storage import Store

FLUSH_SECONDS = 2.0
BATCH = 1000
"""Metrics of one call at most, by MLflow's own limit."""
TAG_LENGTH = 8000
"""Characters of a tag at most, by MLflow's own limit."""
PATIENCE_SECONDS = 300.0
"""Where an attempt has nothing else to do, it waits so long for an MLflow that is away."""
LONGEST_PAUSE_SECONDS = 10.0
LAST_GENERATION = 2**31 - 1
"""Of the command that a later attempt amounts to: no other comes after it."""


Curves = dict[str, list[tuple[int, float]]]
"""Values by step, of each metric that was logged."""
HISTORIES = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
SAMPLE = 2500
"""Values of a curve that are read: the most that MLflow gives."""

T = TypeVar("T")


@dataclass(frozen=True)
class History:
    """What a run tells of itself up to a step."""

    tags: Mapping[str, str]
    curves: Curves


class Tracker:
    """One run's metrics, tags and commands. Metrics and tags go out in batches from a thread of its own.

    A batch that MLflow did not take is sent again with the same timestamps, which adds nothing twice.
    """

    def __init__(self, tracking_uri: str, run_id: str, job_id: str, attempt: int, since_attempt: int = 1) -> None:
        self._client = MlflowClient(tracking_uri)
        self._run_id, self._job_id, self._attempt, self._since_attempt = run_id, job_id, attempt, since_attempt
        self._pending: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._values: dict[str, float] = {}
        self._first: tuple[float, float] | None = None
        self._rate: float | None = None
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of optimiser step ``step``; never waits for MLflow. Values must be finite."""
        now = int(time.time() * 1000)
        broken = [key for key, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(f"not finite at step {step}: {', '.join(broken)}")
        with self._lock:
            self._pending += [Metric(key, value, now, step) for key, value in metrics.items()]
            self._values |= metrics
            self._measure(metrics.get(SAMPLES))
            newest = Newest(attempt=self._attempt, step=step, values=self._values, images_per_s=self._rate)
            text = newest.model_dump_json()
            if len(text) <= TAG_LENGTH:  # some hundred metrics
                self._tags[TAG_NEWEST] = text

    def _measure(self, samples: float | None) -> None:
        """Images a second since the first record, by the clock: what evaluations and checkpoints take counts."""
        if samples is None:
            return
        moment = time.monotonic()
        if self._first is None:
            self._first = moment, samples
        elif moment > self._first[0]:
            self._rate = (samples - self._first[1]) / (moment - self._first[0])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, soon; never waits for MLflow."""
        with self._lock:
            self._tags |= {key: value[:TAG_LENGTH] for key, value in tags.items()}

    def flush(self) -> None:
        """Send what is pending; raises MLflow's error and keeps what MLflow did not take."""
        with self._sending:
            while True:
                with self._lock:
                    batch, tags = self._pending[:BATCH], dict(self._tags)
                if not batch and not tags:
                    return
                self._client.log_batch(self._run_id, batch, tags=[RunTag(key, value) for key, value in tags.items()])
                with self._lock:
                    del self._pending[: len(batch)]
                    self._tags = {key: value for key, value in self._tags.items() if tags.get(key) != value}

    def settle(self) -> None:
        """Send what is pending now, if MLflow takes it; what it does not take goes out with the next batch."""
        try:
            self.flush()
        except MlflowException as error:
            logger.debug("MLflow takes no metrics now: %s", error)

    def close(self) -> None:
        """Send everything, trying for five minutes; raises `StorageError` where it could not be sent."""
        self._ended.set()
        self._thread.join(timeout=60)
        _patiently("the last metrics and tags of the run", self.flush)

    def read_command(self) -> Command | None:
        """The service's last command; a later attempt of the job means that this one is to leave."""
        return command_in(self.tags(), self._attempt)

    def tags(self) -> Mapping[str, str]:
        """The run's tags as they are now."""
        tags: Mapping[str, str] = self._client.get_run(self._run_id).data.tags
        return tags

    def acknowledge(self, command: Command) -> None:
        self._client.set_tag(self._run_id, TAG_OBSERVED, command.model_dump_json())

    def heartbeat(self) -> None:
        now = time.time()
        self._client.log_batch(self._run_id, metrics=[Metric(heartbeat(self._attempt), now, int(now * 1000), 0)])

    def tags_in_time(self) -> Mapping[str, str]:
        """The same, asked for again for five minutes; raises `StorageError` where MLflow stays away."""
        return _patiently("a question about the run", self.tags)

    def trial_run(self, number: int, name: str, params: Mapping[str, str]) -> tuple[str, str]:
        """The run of a trial of this run's search, below it: its id and artifact folder. Asked again, it is the same.

        Tries for five minutes; raises `StorageError` where MLflow stays away or refuses.
        """
        return _patiently(f"the run of trial {number}", lambda: self._trial_run(number, name, params))

    def _trial_run(self, number: int, name: str, params: Mapping[str, str]) -> tuple[str, str]:
        client = self._client
        experiment = client.get_run(self._run_id).info.experiment_id
        mine = f"tags.`{TAG_TRIAL_OF}` = '{self._job_id}' AND tags.`{TAG_TRIAL}` = '{number}'"
        found = client.search_runs([experiment], mine, max_results=1)
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {TAG_TRIAL_OF: self._job_id, TAG_TRIAL: str(number), TAG_PARENT: self._run_id}
            run = client.create_run(experiment, run_name=name, tags=tags)
            client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in params.items()])
        return run.info.run_id, run.info.artifact_uri

    def end_trial_run(self, run_id: str, status: str) -> None:
        """Mark a trial's run `FINISHED`, `FAILED`, `KILLED` or `SCHEDULED`; tries as `trial_run` does."""
        _patiently("the end of a trial's run", lambda: self._client.update_run(run_id, status=status))

    def history(self, run_id: str, keys: Iterable[str], last_step: int) -> History:
        """A run's tags and its curves up to ``last_step``: this run's after all that was logged has been sent.

        Of a step that a resumed attempt logged again the latest value counts. Tries for five minutes; raises
        `StorageError` where MLflow stays away or refuses.
        """
        what = f"a question about the run {run_id}"
        if run_id == self._run_id:
            _patiently("the metrics and tags of the run", self.flush)
        run = _patiently(what, lambda: self._client.get_run(run_id))
        curves = {key: _patiently(what, partial(self._curve, run_id, key, last_step)) for key in keys}
        return History(run.data.tags, {key: points for key, points in curves.items() if points})

    def _curve(self, run_id: str, key: str, last_step: int) -> list[tuple[int, float]]:
        """MLflow's client has no method for it: of many values it picks some, evenly spaced."""
        wanted = {"run_ids": run_id, "metric_key": key, "start_step": 0, "end_step": last_step, "max_results": SAMPLE}
        place = get_default_host_creds(self._client.tracking_uri)  # type: ignore[no-untyped-call]  # MLflow leaves these
        answer = http_request_safe(place, HISTORIES, "GET", params=wanted)  # type: ignore[no-untyped-call]  # without types
        latest: dict[int, tuple[int, float]] = {}
        for metric in answer.json().get("metrics", []):
            step, point = int(metric.get("step", 0)), (int(metric["timestamp"]), float(metric["value"]))
            if step not in latest or point[0] >= latest[step][0]:
                latest[step] = point
        return [(step, value) for step, (_, value) in sorted(latest.items())]

    def register(self, name: str, directory: Path, tags: Mapping[str, str], source_run: str | None = None) -> int:
        """Make a local directory's files a version of the registered model ``name``; gives its number.

        ``source_run`` is the run that trained it, where that is another than the job's own.
        A job has one version: where an earlier attempt has already made it, that one is kept, unless the job has begun
        again from scratch since. Tries for five minutes at each step; raises `StorageError` where MLflow stays away or
        refuses.
        """
        what, client, run_id = f"the backbone {name!r}", self._client, source_run or self._run_id
        all_tags = dict(tags) | {TAG_JOB: self._job_id, TAG_ATTEMPT: str(self._attempt)}
        _patiently(what, lambda: self._make_model(name))
        version = _patiently(what, lambda: self._version(name))
        if version is not None:
            return version
        experiment = _patiently(what, lambda: client.get_run(run_id).info.experiment_id)
        model = _patiently(
            what,
            lambda: client.create_logged_model(
                experiment_id=experiment, name=name, source_run_id=run_id, tags=all_tags, model_type="backbone"
            ),
        )
        # Through our own store, with its retries and errors: MLflow's uploader has others.
        Store(model.artifact_location).upload(directory, "")
        _patiently(what, lambda: client.finalize_logged_model(model.model_id, "READY"))

        def version_of_job() -> int:
            """Looks first: one made before its answer was lost is not made again."""
            found = self._version(name)
            if found is not None:
                return found
            source = f"models:/{model.model_id}"
            created = client.create_model_version(name, source, run_id, tags=all_tags, model_id=model.model_id)
            return int(created.version)

        return _patiently(what, version_of_job)

    def _make_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def _version(self, name: str) -> int | None:
        """The job's version of a registered model, made since it last began from scratch."""
        found = self._client.search_model_versions(f"name = '{name}' AND tags.`{TAG_JOB}` = '{self._job_id}'")
        made = [int(version.version) for version in found if int(version.tags[TAG_ATTEMPT]) >= self._since_attempt]
        return max(made, default=None)

    def _run(self) -> None:
        down = False
        while not self._ended.wait(FLUSH_SECONDS):
            try:
                self.flush()
                down = False
            except MlflowException as error:
                if not down:
                    logger.warning("MLflow takes no metrics and tags; they wait for it: %s", error)
                down = True


def command_in(tags: Mapping[str, str], attempt: int) -> Command | None:
    """What a run's tags tell an attempt to do."""
    if int(tags.get(TAG_ATTEMPT, "0")) > attempt:
        return Command(attempt=attempt, generation=LAST_GENERATION, action="cancel")
    text = tags.get(TAG_COMMAND)
    return Command.model_validate_json(text) if text else None


def orders_in(tags: Mapping[str, str]) -> SearchOrders | None:
    """What a run's tags tell a search; None before the service has said anything."""
    text = tags.get(TAG_SEARCH)
    return SearchOrders.model_validate_json(text) if text else None


class TrialLine:
    """A trial's line to the control plane: it reads what its search is told. Its search answers and shows life."""

    def __init__(self, tracking_uri: str, run_id: str, attempt: int, number: int) -> None:
        """``run_id`` and ``attempt`` are the search's, ``number`` the trial's."""
        self._client, self._run_id, self._attempt, self._number = MlflowClient(tracking_uri), run_id, attempt, number

    def read_command(self) -> Command | None:
        """The search's command; one of its own where this trial alone was stopped."""
        tags = self._client.get_run(self._run_id).data.tags
        orders = orders_in(tags)
        if orders and self._number in orders.stopped:
            return Command(attempt=self._attempt, generation=LAST_GENERATION, action="cancel")
        return command_in(tags, self._attempt)

    def acknowledge(self, command: Command) -> None:
        """Its search does."""

    def heartbeat(self) -> None:
        """So it does with this."""


def _patiently(what: str, ask: Callable[[], T]) -> T:
    """MLflow's answer, asked for again while it is away; raises `StorageError` where it stays away or refuses."""
    deadline, pause, told = time.monotonic() + PATIENCE_SECONDS, 1.0, False
    while True:
        try:
            return ask()
        except MlflowException as error:
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]  # MLflow leaves it without types
            away = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
            if not away or time.monotonic() + pause > deadline:
                raise StorageError(f"MLflow did not take {what}: {error}") from error
            if not told:
                logger.warning("MLflow does not take %s yet; trying again: %s", what, error)
            told = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

"""The run in MLflow: metrics, tags, commands and the registered backbone. The only place that imports mlflow."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

# A thread must not hang: the client waits 120 seconds for an answer unless told otherwise. It sends nothing twice by
# itself, whatever the environment says: what was created before its answer was lost would be created again.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient

from trainer.errors import StorageError
from trainer.logs import logger
from trainer.spec.job import Command
from trainer.spec.names import TAG_ATTEMPT, TAG_COMMAND, TAG_JOB, TAG_OBSERVED, heartbeat
from trainer.storage import Store

FLUSH_SECONDS = 1.0
BATCH = 1000
"""Metrics of one call at most, by MLflow's own limit."""
TAG_LENGTH = 8000
"""Characters of a tag at most, by MLflow's own limit."""
PATIENCE_SECONDS = 300.0
"""Where an attempt has nothing else to do, it waits so long for an MLflow that is away."""
LONGEST_PAUSE_SECONDS = 10.0
LAST_GENERATION = 2**31 - 1
"""Of the command that a later attempt amounts to: no other comes after it."""


T = TypeVar("T")


class Tracker:
    """One run's metrics, tags and commands. Metrics and tags go out in batches from a thread of its own.

    A batch that MLflow did not take is sent again with the same timestamps, which adds nothing twice.
    """

    def __init__(self, tracking_uri: str, run_id: str, job_id: str, attempt: int) -> None:
        self._client = MlflowClient(tracking_uri)
        self._run_id, self._job_id, self._attempt = run_id, job_id, attempt
        self._pending: list[Metric] = []
        self._tags: dict[str, str] = {}
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

    def close(self) -> None:
        """Send everything, trying for five minutes; raises `StorageError` where it could not be sent."""
        self._ended.set()
        self._thread.join(timeout=60)
        _patiently("the last metrics and tags of the run", self.flush)

    def read_command(self) -> Command | None:
        """The service's last command; a later attempt of the job means that this one is to leave."""
        tags = self._client.get_run(self._run_id).data.tags
        if int(tags.get(TAG_ATTEMPT, "0")) > self._attempt:
            return Command(attempt=self._attempt, generation=LAST_GENERATION, action="cancel")
        text = tags.get(TAG_COMMAND)
        return Command.model_validate_json(text) if text else None

    def acknowledge(self, command: Command) -> None:
        self._client.set_tag(self._run_id, TAG_OBSERVED, command.model_dump_json())

    def heartbeat(self) -> None:
        now = time.time()
        self._client.log_batch(self._run_id, metrics=[Metric(heartbeat(self._attempt), now, int(now * 1000), 0)])

    def register(self, name: str, directory: Path, tags: Mapping[str, str]) -> int:
        """Make a local directory's files a version of the registered model ``name``; gives its number.

        A job has one version: where an earlier attempt has already made it, that one is kept. Tries for five minutes
        at each step; raises `StorageError` where MLflow stays away or refuses.
        """
        what, all_tags, client = f"the backbone {name!r}", dict(tags) | {TAG_JOB: self._job_id}, self._client
        _patiently(what, lambda: self._make_model(name))
        version = _patiently(what, lambda: self._version(name))
        if version is not None:
            return version
        experiment = _patiently(what, lambda: client.get_run(self._run_id).info.experiment_id)
        model = _patiently(
            what,
            lambda: client.create_logged_model(
                experiment_id=experiment, name=name, source_run_id=self._run_id, tags=all_tags, model_type="backbone"
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
            created = client.create_model_version(name, source, self._run_id, tags=all_tags, model_id=model.model_id)
            return int(created.version)

        return _patiently(what, version_of_job)

    def _make_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def _version(self, name: str) -> int | None:
        """The job's version of a registered model."""
        found = self._client.search_model_versions(f"name = '{name}'")
        return next((int(version.version) for version in found if version.tags.get(TAG_JOB) == self._job_id), None)

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

"""The run in MLflow: metrics, tags, commands and the registered backbone. The only place that imports mlflow."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

# A thread that must not hang: the client's own defaults are seven retries and 120 seconds a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
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
CLOSE_SECONDS = 300.0
LAST_GENERATION = 2**31 - 1
"""Of the command that a later attempt amounts to: no other comes after it."""


class Tracker:
    """One run's metrics, tags and commands. Metrics go out in batches from a thread of its own.

    A batch that MLflow did not take is sent again with the same timestamps, which adds nothing twice.
    """

    def __init__(self, tracking_uri: str, run_id: str, job_id: str, attempt: int) -> None:
        self._client = MlflowClient(tracking_uri)
        self._run_id, self._job_id, self._attempt = run_id, job_id, attempt
        self._pending: list[Metric] = []
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
        """Set tags of the run; raises `StorageError` where MLflow does not take them."""
        try:
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        except MlflowException as error:
            raise StorageError(f"MLflow did not take the run's tags: {error}") from error

    def flush(self) -> None:
        """Send what is pending; raises MLflow's error and keeps the metrics where it does not take them."""
        with self._sending:
            while True:
                with self._lock:
                    batch = self._pending[:BATCH]
                if not batch:
                    return
                self._client.log_batch(self._run_id, metrics=batch)
                with self._lock:
                    del self._pending[: len(batch)]

    def close(self) -> None:
        """Send everything, trying for five minutes; raises `StorageError` where it could not be sent."""
        self._ended.set()
        self._thread.join(timeout=60)
        deadline, wait = time.monotonic() + CLOSE_SECONDS, 1.0
        while True:
            try:
                self.flush()
            except MlflowException as error:
                if time.monotonic() + wait > deadline:
                    raise StorageError(f"MLflow did not take {len(self._pending)} metrics: {error}") from error
                time.sleep(wait)
                wait = min(2 * wait, 30.0)
            else:
                return

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

        A job has one version: where an earlier attempt has already made it, that one is kept.
        """
        try:
            return self._register(name, directory, dict(tags) | {TAG_JOB: self._job_id})
        except MlflowException as error:
            raise StorageError(f"MLflow did not register the backbone {name!r}: {error}") from error

    def _register(self, name: str, directory: Path, tags: dict[str, str]) -> int:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(TAG_JOB) == self._job_id:
                return int(version.version)
        experiment = self._client.get_run(self._run_id).info.experiment_id
        model = self._client.create_logged_model(
            experiment_id=experiment, name=name, source_run_id=self._run_id, tags=tags, model_type="backbone"
        )
        # Through our own store, with its retries and errors: MLflow's uploader has others.
        Store(model.artifact_location).upload(directory, "")
        self._client.finalize_logged_model(model.model_id, "READY")
        created = self._client.create_model_version(
            name=name, source=f"models:/{model.model_id}", run_id=self._run_id, tags=tags, model_id=model.model_id
        )
        return int(created.version)

    def _run(self) -> None:
        down = False
        while not self._ended.wait(FLUSH_SECONDS):
            try:
                self.flush()
                down = False
            except MlflowException as error:
                if not down:
                    logger.warning("MLflow takes no metrics; they wait for it: %s", error)
                down = True

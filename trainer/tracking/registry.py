"""MLflow's model registry: a backbone's versions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient

from trainer.protocol.names import TAG_ATTEMPT, TAG_JOB
from trainer.storage import Store
from trainer.tracking.client import MLFLOW, show


@dataclass(frozen=True)
class About:
    """What MLflow's pages say of a version."""

    tags: Mapping[str, str]
    run_id: str
    """The run that trained it."""
    params: Mapping[str, str]
    """The spec, flat."""
    metrics: Mapping[str, float]
    """Of its last evaluation."""
    step: int
    """The step of that evaluation."""
    model_type: str = "backbone"

    def metrics_of(self, model_id: str) -> list[Metric]:
        """The evaluation as metrics of a logged model, with one time, so that a repeated request adds nothing."""
        moment = int(time.time() * 1000)
        return [Metric(key, value, moment, self.step, model_id=model_id) for key, value in self.metrics.items()]


class BackboneRegistry:
    """Registers one job's backbone."""

    def __init__(self, tracking_uri: str, job_id: str, attempt: int, since_attempt: int = 1) -> None:
        """Versions made by attempts before ``since_attempt`` do not count: the job began again from scratch."""
        self._client = MlflowClient(tracking_uri)
        self._job_id, self._attempt, self._since_attempt = job_id, attempt, since_attempt

    def register(self, name: str, directory: Path, about: About) -> int:
        """Make a local directory's files a version of the registered model ``name``; returns its number.

        A job has one version: if an earlier attempt has already made it,
        that one is kept. Each step is retried for five minutes; raises `StorageError` if MLflow stays unreachable or
        refuses.
        """
        action, client = f"register the backbone {name!r}", self._client
        all_tags = dict(about.tags) | {TAG_JOB: self._job_id, TAG_ATTEMPT: str(self._attempt)}
        MLFLOW.call(action, lambda: self._ensure_registered_model(name))
        version = MLFLOW.call(action, lambda: self._find_version(name))
        if version is not None:
            return version
        experiment = MLFLOW.call(action, lambda: client.get_run(about.run_id).info.experiment_id)
        model = MLFLOW.call(
            action,
            lambda: client.create_logged_model(
                experiment_id=experiment,
                name=name,
                source_run_id=about.run_id,
                tags=all_tags,
                params=dict(about.params),
                model_type=about.model_type,
            ),
        )
        metrics = about.metrics_of(model.model_id)
        log_metrics = partial(client.log_batch, about.run_id, metrics=metrics)  # refused if somebody deleted the run
        MLFLOW.call(action, lambda: show("the evaluation of the version", log_metrics))
        # Uploaded through our own store, for its retries and errors; MLflow's uploader has others.
        Store(model.artifact_location).upload(directory, "")
        MLFLOW.call(action, lambda: client.finalize_logged_model(model.model_id, "READY"))

        def find_or_create_version() -> int:
            """Look first: if only the answer to the creation was lost, the version is there."""
            existing = self._find_version(name)
            if existing is not None:
                return existing
            source = f"models:/{model.model_id}"
            created = client.create_model_version(name, source, about.run_id, tags=all_tags, model_id=model.model_id)
            return int(created.version)

        return MLFLOW.call(action, find_or_create_version)

    def registered(self, name: str) -> int | None:
        """The version of ``name`` that the job has registered already, if it has."""
        return MLFLOW.call(f"look up the versions of {name!r}", lambda: self._find_version(name))

    def _ensure_registered_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise

    def _find_version(self, name: str) -> int | None:
        """The version that the job has registered since it last began from scratch.

        That is the oldest with its tags, as people copy versions with their tags; one that names no attempt was not
        registered by any.
        """
        matches = self._client.search_model_versions(f"name = '{name}' AND tags.`{TAG_JOB}` = '{self._job_id}'")
        versions = [(int(each.tags.get(TAG_ATTEMPT, 0)), int(each.version)) for each in matches]
        return min((number for attempt, number in versions if attempt >= self._since_attempt), default=None)

"""The MLflow runs of a search's trials."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.entities import LifecycleStage, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from trainer.protocol.names import TAG_PARENT, TAG_REPLACES, TAG_TRIAL, TAG_TRIAL_OF, TAG_USER
from trainer.protocol.parameters import requests
from trainer.tracking.client import MLFLOW


class TrialRuns:
    """Runs of trials, children of their search's run.

    Every method retries for five minutes; raises `StorageError` if MLflow stays unreachable or refuses.
    """

    def __init__(self, tracking_uri: str, search_run_id: str, search_id: str) -> None:
        """``search_id`` is the search's job id."""
        self._client, self._search_run_id, self._search_id = MlflowClient(tracking_uri), search_run_id, search_id

    def open(self, number: int, name: str, params: Mapping[str, str], recorded: str | None) -> tuple[str, str]:
        """The id and the artifact folder of a trial's run, which is created by the first call.

        ``recorded`` is the run that the study has for the trial: whatever other runs carry the trial's tags, that one
        is used, and restored if somebody deleted it. Only if it was permanently deleted, another one is created.
        """
        return MLFLOW.call(f"open the run of trial {number}", lambda: self._open(number, name, params, recorded))

    def _open(self, number: int, name: str, params: Mapping[str, str], recorded: str | None) -> tuple[str, str]:
        run = (self._run_or_none(recorded) if recorded else None) or self._find_or_create(number, name, recorded)
        run_id = run.info.run_id
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_run(run_id)
        self._client.update_run(run_id, status="RUNNING")
        for some in requests(params, run.data.params):
            self._client.log_batch(run_id, params=[Param(key, value) for key, value in some])
        return run_id, run.info.artifact_uri

    def _find_or_create(self, number: int, name: str, removed: str | None) -> Run:
        """A new run for a trial, or the one created for it when the answer was lost."""
        search = self._client.get_run(self._search_run_id)
        experiment, owner = search.info.experiment_id, search.data.tags.get(TAG_USER, "")
        tags = {TAG_TRIAL_OF: self._search_id, TAG_TRIAL: str(number)}
        if removed:  # its copies carry its tags, but do not say that they replace it
            tags[TAG_REPLACES] = removed
        query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        oldest = ["attributes.start_time ASC"]  # a copy is younger than what it was copied from
        existing = self._client.search_runs([experiment], query, ViewType.ALL, max_results=1, order_by=oldest)
        if existing:
            return existing[0]
        tags |= {TAG_PARENT: self._search_run_id, TAG_USER: owner}
        return self._client.create_run(experiment, run_name=name, tags=tags)

    def _run_or_none(self, run_id: str) -> Run | None:
        """A run, also a deleted one; None if it was removed for good."""
        try:
            return self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return None

    def end(self, run_id: str, status: str) -> None:
        """Mark a trial's run `FINISHED`, `FAILED`, `KILLED` or `SCHEDULED`."""
        MLFLOW.call("end a trial's run", lambda: self._client.update_run(run_id, status=status))

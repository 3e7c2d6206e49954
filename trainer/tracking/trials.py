"""The MLflow runs of a search's trials."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from trainer.protocol.names import TAG_PARENT, TAG_TRIAL, TAG_TRIAL_OF
from trainer.tracking.client import MLFLOW


class TrialRuns:
    """Runs of trials, children of their search's run.

    Every method retries for five minutes; raises `StorageError` if MLflow stays unreachable or refuses.
    """

    def __init__(self, tracking_uri: str, search_run_id: str, search_id: str) -> None:
        """``search_id`` is the search's job id."""
        self._client, self._search_run_id, self._search_id = MlflowClient(tracking_uri), search_run_id, search_id

    def open(self, number: int, name: str, params: Mapping[str, str]) -> tuple[str, str]:
        """The id and the artifact folder of a trial's run, which is created if there is none yet."""
        return MLFLOW.call(f"open the run of trial {number}", lambda: self._find_or_create(number, name, params))

    def _find_or_create(self, number: int, name: str, params: Mapping[str, str]) -> tuple[str, str]:
        client = self._client
        experiment = client.get_run(self._search_run_id).info.experiment_id
        query = f"tags.`{TAG_TRIAL_OF}` = '{self._search_id}' AND tags.`{TAG_TRIAL}` = '{number}'"
        existing = client.search_runs([experiment], query, max_results=1)
        if existing:
            run = existing[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {TAG_TRIAL_OF: self._search_id, TAG_TRIAL: str(number), TAG_PARENT: self._search_run_id}
            run = client.create_run(experiment, run_name=name, tags=tags)
            client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in params.items()])
        return run.info.run_id, run.info.artifact_uri

    def end(self, run_id: str, status: str) -> None:
        """Mark a trial's run `FINISHED`, `FAILED`, `KILLED` or `SCHEDULED`."""
        MLFLOW.call("end a trial's run", lambda: self._client.update_run(run_id, status=status))

"""A real MLflow store in a file, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from service.adapters.mlflow_runs import EXPERIMENT


@contextmanager
def tracking_store(folder: Path, artifacts: Path) -> Iterator[str]:
    """Its URI; the runs' artifacts lie below ``artifacts``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the store makes its default artifact folder where it is opened
        uri = f"sqlite:///{folder}/mlflow.db"
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # its registry looks logged models up there
        MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=str(artifacts))
        yield uri


def copy_run(client: MlflowClient, run_id: str) -> str:
    """Another run with all of a run's tags, a moment younger, as scripts that copy runs leave it; gives its id."""
    run = client.get_run(run_id)
    copied = client.create_run(run.info.experiment_id, run.info.start_time + 1, tags=run.data.tags)
    return str(copied.info.run_id)


def remove_for_good(client: MlflowClient, run_id: str) -> None:
    """What `mlflow gc` does in the end to a deleted run."""
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)

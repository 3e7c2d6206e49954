"""A real MLflow store in a file, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from service.adapters.mlflow_store import EXPERIMENT


@contextmanager
def tracking_store(folder: Path, artifacts: Path) -> Iterator[str]:
    """Its URI; the runs' artifacts lie below ``artifacts``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the store makes its default artifact folder where it is opened
        uri = f"sqlite:///{folder}/mlflow.db"
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # its registry looks logged models up there
        MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=str(artifacts))
        yield uri

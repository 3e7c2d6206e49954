"""MLflow: runs, metrics, commands and the registry of backbones."""

from __future__ import annotations

from service.adapters.mlflow_registry import MlflowRegistry
from service.adapters.mlflow_runs import MlflowRuns


class MlflowStore(MlflowRuns, MlflowRegistry):
    """All that the service does with one MLflow server. Every method raises `MlflowUnreachable` if it fails."""

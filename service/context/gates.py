"""The gates through which requests reach the service's dependencies."""

from __future__ import annotations

from dataclasses import replace

from service.adapters.breaker import Breaker, Gate, Unreachable
from service.adapters.mlflow_connection import MlflowRefused, MlflowUnreachable
from service.adapters.ray_cluster import ClusterRefused, ClusterUnreachable
from service.adapters.storage import StorageRefused, StorageUnreachable
from service.adapters.studies import StudiesRefused, StudiesUnreachable
from service.context.app_state import AppState


def gated(state: AppState) -> AppState:
    """The state for requests, whose calls to each dependency go through a gate.

    Requests run on 40 threads. While all four dependencies hang, their gates hold 33 of them. Streams of logs, whose 8
    threads are their own, share the storage's gate.
    """
    return replace(
        state,
        ray=state.ray.gated(_gate(ClusterUnreachable, ClusterRefused, calls=3, waiting=1)),
        mlflow=state.mlflow.gated(_gate(MlflowUnreachable, MlflowRefused, calls=6, waiting=3)),
        artifacts=state.artifacts.gated(_gate(StorageUnreachable, StorageRefused, calls=10, waiting=4)),
        studies=state.studies.gated(_gate(StudiesUnreachable, StudiesRefused, calls=4, waiting=2)),
    )


def _gate(failure: type[Unreachable], refusal: type[Unreachable], calls: int, waiting: int) -> Gate:
    return Gate(Breaker(failure.dependency, failure, refusal=refusal), failure, calls, waiting)

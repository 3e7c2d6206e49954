"""The controller's view of its adapters: whatever changes something asks first whether it may.

A process that lost the lease, and does not know it yet, writes nothing into the database: each transaction asks.
Outside the database nothing would hold it back, so that it could end the runs, close the trials and delete the files
that the next controller works with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from service.context.app_state import AppState

Adapter = TypeVar("Adapter")

READS: Final = frozenset(
    {
        *("shape", "machines", "submissions", "placements", "state", "log_tail"),  # of Ray
        *("run", "views", "open_runs", "trial_runs", "histories"),  # of MLflow
        *("versions_of_job", "all_versions", "all_models"),  # of its registry
        *("file", "holds", "read", "sizes", "folders", "files"),  # of the storage
        *("study", "trials", "seconds"),  # of studies
    }
)
"""Methods that change nothing. Whatever is not named here is an effect, also a method that is added one day."""


class _Fenced:
    """An adapter whose effects are preceded by a check."""

    def __init__(self, adapter: object, check: Callable[[], None]) -> None:
        self._adapter, self._check = adapter, check

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._adapter, name)
        if name in READS or not callable(found):
            return found

        def effect(*given: Any, **named: Any) -> Any:
            self._check()
            return found(*given, **named)

        return effect


def fenced(app: AppState, check: Callable[[], None]) -> AppState:
    """The same state with adapters whose every effect calls ``check`` right before, which raises where it must not."""

    def around(adapter: Adapter) -> Adapter:
        inner = adapter._adapter if isinstance(adapter, _Fenced) else adapter  # noqa: SLF001 - of another context
        return cast(Adapter, _Fenced(inner, check))

    return replace(
        app,
        ray=around(app.ray),
        mlflow=around(app.mlflow),
        artifacts=around(app.artifacts),
        studies=around(app.studies),
    )

"""Searches with trials in a real study, as their drivers leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.trial import TrialState, create_trial
from service_fakes import SPEC, FakeMlflow, add_job, job_of

from service.adapters.studies import Studies
from service.db.database import Database
from service.db.tables import Job
from trainer.protocol import names
from trainer.search.study import distribution
from trainer.spec.search import SearchSpec

MOMENTUM, RATE, BETAS = "method.teacher.momentum", "optimization.base_lr", "optimization.betas"
SEARCH: dict[str, Any] = {
    "kind": "search",
    "name": "tune",
    "base": SPEC
    | {
        "optimization": {"epochs": 9, "global_batch_size": 64},
        "evaluation": {"every_epochs": 3},
        "labels": {"team": "vision"},
        "register_as": "walk",
    },
    "space": {
        MOMENTUM: {"type": "float", "low": 0.9, "high": 0.9999},
        RATE: {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    },
    "budget": {"trials": 8, "concurrency": 2},
}
"""A search whose trials take two CPUs each."""
CHOICES = {BETAS: {"type": "categorical", "choices": [[0.9, 0.95], [0.9, 0.999]]}}
NOON = datetime(2026, 3, 1, 12, 0, 0)  # noqa: DTZ001 - as Optuna writes it


def search_with(**fields: Any) -> dict[str, Any]:
    return SEARCH | fields


class SearchFiles:
    """Adds searches, and trials to them."""

    def __init__(self, database: Database, studies: Studies, mlflow: FakeMlflow) -> None:
        self.database, self.studies, self.mlflow = database, studies, mlflow

    def add(self, state: str = "running", spec: dict[str, Any] | None = None, **fields: Any) -> str:
        """A search whose study has been made."""
        job_id = add_job(self.database, state, spec or SEARCH, **fields)
        self.studies.make(job_id, SearchSpec.parse(spec or SEARCH))
        return job_id

    def job(self, job_id: str) -> Job:
        return job_of(self.database, job_id)

    def change(self, job_id: str, **values: Any) -> None:
        with self.database.session() as session:
            job = session.get(Job, job_id)
            for name, value in values.items():
                setattr(job, name, value)

    def trial(
        self,
        job_id: str,
        state: TrialState = TrialState.COMPLETE,
        point: Mapping[str, Any] | None = None,
        values: Sequence[float] | None = None,
        curve: Sequence[float] = (),
        minutes: float = 1.0,
        **attributes: Any,
    ) -> int:
        """A trial as it is left behind; gives its number. ``curve`` has the values at epochs 3, 6 and so on."""
        spec = SearchSpec.parse(self.job(job_id).spec)
        point = point if point is not None else {MOMENTUM: 0.99, RATE: 1e-4}
        frozen = create_trial(
            state=state,
            values=list(values) if values is not None else None,
            params=spec.stored(point),
            distributions={path: distribution(spec.space[path]) for path in point},
            user_attrs=attributes,
            intermediate_values={3 * (index + 1): value for index, value in enumerate(curve)},
        )
        number = len(self.studies.trials(job_id))
        frozen.datetime_start = NOON + timedelta(minutes=number)
        frozen.datetime_complete = frozen.datetime_start + timedelta(minutes=minutes) if state.is_finished() else None
        study = self.studies.study(job_id)
        study._storage.create_new_trial(study._study_id, template_trial=frozen)
        return number

    def with_run(
        self, job_id: str, files: Mapping[str, bytes], point: Mapping[str, Any] | None = None, **attributes: Any
    ) -> int:
        """A running trial with a run of its own and files in it."""
        number = len(self.studies.trials(job_id))
        run_id, folder = self.mlflow.make_trial_run(job_id, number)
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        own = {names.TRIAL_RUN: run_id, names.TRIAL_FOLDER: folder, names.TRIAL_ATTEMPTS: [1]} | attributes
        return self.trial(job_id, TrialState.RUNNING, point, **own)

    def states(self, job_id: str) -> list[str]:
        return [trial.state.name for trial in self.studies.trials(job_id)]

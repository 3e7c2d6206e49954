"""How far a job is whose own MLflow run has all its metrics, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.controller.context import ControllerContext
from service.db.tables import Attempt, Job
from service.jobs import progress
from service.jobs.deletion import versions_of
from service.jobs.schemas import BackboneRef, Result, State

RESULT_METRICS = ("eval/", "train/loss", "progress/")


@dataclass(frozen=True)
class RunStanding:
    """What a job's run tells."""

    run: RunView | None
    """None where MLflow is out of reach or was not asked, and where the run was removed."""
    done: str
    """What a job that has succeeded says."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest value of each."""
    versions: Sequence[BackboneRef] = ()
    """Those that it registered."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        if self.run:
            progress.record(job, attempts, self.run, moment)

    def summary(self) -> str:
        return self.done

    def result(self) -> Result:
        metrics = {key: value for key, value in self.metrics.items() if key.startswith(RESULT_METRICS)}
        versions = list(self.versions)
        return Result(metrics=metrics, backbone=versions[-1] if versions else None, backbones=versions)

    def succeeded(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Nothing else happens."""


def settled(context: ControllerContext, job: Job, run: RunView | None, state: State, done: str) -> RunStanding:
    """What a job's run tells at its end; raises `Away`."""
    there = run if run and not run.gone else None
    if state is not State.SUCCEEDED:
        return RunStanding(there, done)
    with context.needs.mlflow.asked():
        versions = versions_of(context.kinds, job, context.app.mlflow)
    return RunStanding(
        there,
        done,
        there.metrics if there else job.metrics or {},  # of a run that is gone: as last seen
        [BackboneRef(name=version.name, version=version.version) for version in versions],
    )

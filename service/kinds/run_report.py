"""Progress and result of a job that has a single MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.controller.context import ControllerContext
from service.db.tables import Attempt, Job
from service.jobs import progress, versions, visibility
from service.jobs.schemas import BackboneRef, Result
from service.jobs.state import State
from service.jobs.versions import Registered

RESULT_METRICS = ("eval/", "train/loss", "progress/")


@dataclass(frozen=True)
class RunReport:
    """A job's progress and result, read from its run."""

    run: RunView | None
    """None where MLflow is unavailable or was not called, and where the run was removed."""
    complete: str
    """The message of a job that has succeeded."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest value of each metric."""
    registered: Sequence[Registered] = ()
    """The versions that the job has registered, oldest first."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        if self.run:
            progress.record(job, attempts, self.run, moment)

    def summary(self) -> str:
        return self.complete

    def result(self) -> Result:
        metrics = {key: value for key, value in self.metrics.items() if key.startswith(RESULT_METRICS)}
        references = [BackboneRef(name=each.version.name, version=each.version.version) for each in self.registered]
        return Result(metrics=metrics, backbone=references[-1] if references else None, backbones=references)

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:  # noqa: ARG002
        """Add the versions that the job has registered; an attempt may have registered one and failed afterwards."""
        if not visibility.closed_to(session, [job.id]):
            for each in self.registered:
                versions.add(session, job, each, {})


def _closed(context: ControllerContext, job: Job) -> bool:
    with context.app.database.read() as session:
        return bool(visibility.closed_to(session, [job.id]))


def final_report(context: ControllerContext, job: Job, run: RunView | None, state: State, complete: str) -> RunReport:
    """The final report of a job that moves to ``state``; raises `Unavailable`."""
    existing = run if run and not run.gone else None
    if state is State.RECOVERING:
        return RunReport(existing, complete)
    with context.dependencies.mlflow.call():
        registered = versions.registered_by(job, context.app.mlflow)
    if registered and _closed(context, job):
        complete = f"{complete} {visibility.not_joined(registered[0].version.name)}"
        registered = []
    if state is not State.SUCCEEDED:
        return RunReport(existing, complete, registered=registered)
    metrics = existing.metrics if existing else job.metrics or {}  # of a removed run: the last known ones
    return RunReport(existing, complete, metrics, registered)

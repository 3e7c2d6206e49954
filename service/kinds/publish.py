"""Jobs that publish: each registers a checkpoint of another job as a backbone."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.adapters.storage import Artifacts
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ControllerContext
from service.controller.kind import ControllerKind, Reads
from service.db.database import Database
from service.db.tables import Attempt, Job
from service.jobs.state import State
from service.kinds.run_report import RunReport, final_report
from service.kinds.subjects import (
    checkpoint_source,
    pretraining_job,
    refused,
    require_checkpoint,
    still_there,
)
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.spec.cluster import ClusterShape
from trainer.spec.export import misfit
from trainer.spec.job import Kind, parse_pretrain
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec
from trainer.spec.subject import CheckpointRef

BYTES_PER_PARAMETER: Final = 12
"""Bytes per parameter while a checkpoint is published: the weights read, those written, and a copy to compare."""
COMPLETE: Final = "The backbone is registered."


class Publish(ControllerKind[PublishSpec]):
    """A job that publishes a checkpoint."""

    name = Kind.PUBLISH
    advice = MappingProxyType(
        {Reason.OUT_OF_MEMORY: "Use nodes with more memory, or leave onnx out of export.formats."}
    )

    def check(self, app_state: AppState, caller: Caller, spec: PublishSpec) -> Subject:
        job, trained = publishable_job(app_state.database, app_state.artifacts, caller, spec)
        return Subject(job.dataset_uri, trained.model_copy(update={"export": spec.export.over(trained.export)}))

    def recheck(self, session: Session, settings: Settings, spec: PublishSpec) -> None:  # noqa: ARG002
        still_there(session, CheckpointRef(job=spec.job), "job", "published")

    def schedule(self, session: Session, spec: PublishSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: PublishSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return BYTES_PER_PARAMETER * sum(subject.trained.model.parameters) if subject.trained else 0

    def source_job(self, job: Job) -> str | None:
        return str(job.spec["job"])

    def reads(self, session: Session, spec: PublishSpec) -> Reads:
        return Reads(checkpoint_source(session, spec.job, "published"))

    def running_message(self, job: Job, attempt: Attempt) -> str:  # noqa: ARG002
        return f"Attempt {attempt.number} is publishing."

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> RunReport | None:  # noqa: ARG002
        return RunReport(run, COMPLETE) if run and not run.gone else None

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> RunReport:
        return final_report(context, job, run, state, COMPLETE)


def publishable_job(
    database: Database, artifacts: Artifacts, caller: Caller, spec: PublishSpec
) -> tuple[Job, PretrainSpec]:
    """The job whose checkpoint is to be published, with its spec; raises the spec's error where it cannot be.

    Reads from the artifact storage: no transaction may be open.
    """
    job = pretraining_job(database, caller, spec.job, "job", "published")
    trained = parse_pretrain(job.run_spec)
    mismatch = misfit(
        spec.export.over(trained.export), trained.method.name, (trained.model.height, trained.model.width)
    )
    if mismatch:
        raise refused(*mismatch)
    require_checkpoint(artifacts, job, spec.checkpoint, {"job": "job", "checkpoint": "checkpoint"})
    return job, trained

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
from service.controller.kind import CannotStart, ControllerKind
from service.db.database import Database
from service.db.tables import Attempt, Job
from service.http.problems import ApiProblem, spec_problem
from service.jobs import repository
from service.jobs.checkpoints import checkpoints_of
from service.jobs.state import State
from service.kinds.run_report import RunReport, final_report
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.protocol.request import Source
from trainer.spec.base import Problem
from trainer.spec.cluster import ClusterShape
from trainer.spec.export import misfit
from trainer.spec.job import Kind, parse_pretrain
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec

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

    def recheck(self, settings: Settings, spec: PublishSpec) -> None:
        """Nothing to do: its checkpoint is checked when it starts."""

    def schedule(self, session: Session, spec: PublishSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: PublishSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return BYTES_PER_PARAMETER * sum(subject.trained.model.parameters) if subject.trained else 0

    def source_job(self, job: Job) -> str | None:
        return str(job.spec["job"])

    def source(self, session: Session, spec: PublishSpec) -> Source | None:
        job = session.get(Job, spec.job)
        if job is None or job.deleted_at is not None or not job.run_id or not job.artifact_uri:
            raise CannotStart(
                f"{spec.job}, whose checkpoint was to be published, has been deleted: nothing is left to publish."
            )
        return Source(job_id=job.id, run_id=job.run_id, artifact_uri=job.artifact_uri, since_attempt=job.since_attempt)

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
    with database.read() as session:
        try:
            job = repository.visible_job(session, spec.job, caller)
        except ApiProblem as error:
            raise _refused("job", f"{error.detail}: `rcmae jobs list` shows yours", spec.job) from error
    if job.kind == Kind.SEARCH:
        text = "is a search, whose checkpoints cannot be published: promote a trial, and name the job it becomes"
        raise _refused("job", text, spec.job)
    if job.kind != Kind.PRETRAIN:
        raise _refused("job", f"is a {job.kind} job: name the job that trained the backbone", spec.job)
    trained = parse_pretrain(job.run_spec)
    mismatch = misfit(
        spec.export.over(trained.export), trained.method.name, (trained.model.height, trained.model.width)
    )
    if mismatch:
        field, message, value = mismatch
        raise _refused(field, message, value)
    kept = [checkpoint.path for checkpoint in checkpoints_of(job, artifacts)]
    if not kept:
        raise _refused("job", "has no checkpoint yet: wait for the first one", spec.job)
    if spec.checkpoint is not None and spec.checkpoint not in kept:
        text = f"is not a checkpoint of {spec.job}: it has {', '.join(kept)}"
        raise _refused("checkpoint", text, spec.checkpoint)
    return job, trained


def _refused(field: str, message: str, value: object) -> ApiProblem:
    return spec_problem([Problem(field, f"/{field.replace('.', '/')}", value, message)])

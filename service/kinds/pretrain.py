"""Jobs that pretrain a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ControllerContext
from service.controller.kind import ControllerKind
from service.db.tables import Attempt, Job
from service.jobs.progress import progress_of
from service.jobs.state import State
from service.jobs.submission import check_dataset_roots, schedule
from service.kinds.following import PretrainReport, check_following, told
from service.kinds.inspected import warnings
from service.kinds.run_report import RunReport, final_report
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.inspection import Warned
from trainer.protocol.progress import Newest
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import Kind
from trainer.spec.plan import Schedule, memory_per_worker
from trainer.spec.pretrain import PretrainSpec

COMPLETE = "Training is complete."


class Pretrain(ControllerKind[PretrainSpec]):
    """A job that pretrains a backbone."""

    name = Kind.PRETRAIN

    def check(self, app_state: AppState, caller: Caller, spec: PretrainSpec) -> Subject:
        check_dataset_roots(app_state.settings, spec)
        with app_state.database.read() as session:
            check_following(session, caller, spec)
        return Subject(spec.dataset.uri, spec)

    def recheck(self, session: Session, settings: Settings, spec: PretrainSpec) -> None:  # noqa: ARG002
        check_dataset_roots(settings, spec)

    def schedule(self, session: Session, spec: PretrainSpec) -> Schedule | None:
        return schedule(session, spec)

    def memory_per_worker(self, resolved: PretrainSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return training_memory(resolved)

    def plan_note(self, spec: PretrainSpec, resolved: PretrainSpec) -> str:  # noqa: ARG002
        return told(spec)

    def trial_progress(
        self, spec: PretrainSpec, newest: Newest, steps: str | None, running: Sequence[int]
    ) -> Mapping[str, Any] | None:
        found = progress_of(spec.model_dump(mode="json"), newest, steps, running)
        return None if found is None else found.model_dump()

    def plan_warnings(self, session: Session, spec: PretrainSpec) -> list[Warned]:
        return warnings(session, spec)

    def run_tags(self, spec: PretrainSpec) -> Mapping[str, str]:
        return {names.TAG_METHOD: spec.method.name, names.TAG_EPOCHS: str(spec.optimization.epochs)}

    def running_message(self, job: Job, attempt: Attempt) -> str:  # noqa: ARG002
        return f"Attempt {attempt.number} is training."

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> RunReport | None:  # noqa: ARG002
        return RunReport(run, COMPLETE) if run and not run.gone else None

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> PretrainReport:
        found = final_report(context, job, run, state, COMPLETE)
        return PretrainReport(found.run, found.complete, found.metrics, found.registered)


def training_memory(resolved: PretrainSpec) -> int:
    """Estimated memory of one worker, in bytes."""
    optimization = resolved.optimization
    micro_batch = optimization.micro_batch_size
    smallest = 1 if micro_batch == "auto" else micro_batch  # on a GPU the worker chooses it by the memory
    bf16 = bool(resolved.resources.gpus_per_worker) and optimization.precision != "fp32"
    return memory_per_worker(resolved.model, resolved.method, smallest, bf16 or optimization.precision == "bf16")

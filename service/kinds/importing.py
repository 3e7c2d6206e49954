"""Jobs that import weights from elsewhere: each registers a backbone that somebody else has trained."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Final

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ControllerContext
from service.controller.kind import ControllerKind
from service.db.tables import Attempt, Job
from service.jobs.schemas import ImportProgress
from service.jobs.state import State
from service.jobs.submission import check_roots
from service.kinds.run_report import RunReport, final_report
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.protocol.progress import IMPORTING
from trainer.spec.cluster import ClusterShape
from trainer.spec.importing import ImportSpec
from trainer.spec.job import Kind
from trainer.spec.plan import Schedule

MEMORY: Final = 9 * 2**30
"""Bytes, an estimate: a network's size is not known before its files are read. Enough for a ViT-L with its decoder in
all formats, which took 8.3 GiB at most, while the formats were written and read back."""
COMPLETE: Final = "The backbone is registered."


class Import(ControllerKind[ImportSpec]):
    """A job that imports weights."""

    name = Kind.IMPORT
    advice = MappingProxyType(
        {Reason.OUT_OF_MEMORY: "Use nodes with more memory, or leave onnx out of export.formats."}
    )

    def check(self, app_state: AppState, caller: Caller, spec: ImportSpec) -> Subject:  # noqa: ARG002
        check_roots(app_state.settings, {"source": spec.source})
        return Subject("")

    def continuation(self, has_checkpoint: bool) -> str:  # noqa: ARG002
        return "read the weights again"

    def recheck(self, session: Session, settings: Settings, spec: ImportSpec) -> None:  # noqa: ARG002
        check_roots(settings, {"source": spec.source})

    def schedule(self, session: Session, spec: ImportSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: ImportSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return MEMORY

    def running_message(self, job: Job, attempt: Attempt) -> str:  # noqa: ARG002
        return f"Attempt {attempt.number} is importing the weights."

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> ImportReport | None:  # noqa: ARG002
        return ImportReport(run, COMPLETE) if run and not run.gone else None

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> ImportReport:
        return ImportReport(**vars(final_report(context, job, run, state, COMPLETE)))


class ImportReport(RunReport):
    """How far an import is, and what it has registered."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:  # noqa: ARG002
        running = next((attempt.number for attempt in attempts if attempt.ended_at is None), None)
        activity = self.run.activity(running) if self.run and running is not None else None
        if self.registered:
            done = len(IMPORTING)
        elif activity and activity.phase in IMPORTING:
            done = IMPORTING.index(activity.phase)
        else:
            return
        phase = IMPORTING[min(done, len(IMPORTING) - 1)]
        job.progress = ImportProgress(phase=phase, done=done, phases=len(IMPORTING)).model_dump(mode="json")

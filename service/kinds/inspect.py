"""Jobs that inspect a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from service.jobs.schemas import InspectionProgress, Result
from service.jobs.state import State
from service.jobs.submission import check_roots
from service.kinds.stored_result import stored_result
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.inspection import INSPECTION, Inspection
from trainer.protocol.outcome import Reason
from trainer.spec import metric_keys
from trainer.spec.cluster import ClusterShape
from trainer.spec.inspect import InspectSpec
from trainer.spec.job import Kind
from trainer.spec.plan import Schedule

BYTES_PER_CORE: Final = 2**29
"""An estimate: a few decoded images, and the index."""


class Inspect(ControllerKind[InspectSpec]):
    """A job that inspects a dataset."""

    name = Kind.INSPECT
    advice = MappingProxyType({Reason.OUT_OF_MEMORY: "Lower resources.cpus_per_worker, or use nodes with more memory."})

    def check(self, app_state: AppState, caller: Caller, spec: InspectSpec) -> Subject:  # noqa: ARG002
        check_roots(app_state.settings, {"dataset": spec.dataset})
        return Subject(spec.dataset.uri)

    def continuation(self, has_checkpoint: bool) -> str:  # noqa: ARG002
        return "continue with the images that it has not decoded yet"

    def recheck(self, session: Session, settings: Settings, spec: InspectSpec) -> None:  # noqa: ARG002
        check_roots(settings, {"dataset": spec.dataset})

    def schedule(self, session: Session, spec: InspectSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: InspectSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return BYTES_PER_CORE * resolved.resources.cpus_per_worker

    def running_message(self, job: Job, attempt: Attempt) -> str:  # noqa: ARG002
        return f"Attempt {attempt.number} is inspecting the images."

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> InspectionReport | None:  # noqa: ARG002
        return InspectionReport(run, None) if run and not run.gone else None

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> InspectionReport:
        existing = run if run and not run.gone else None
        return InspectionReport(existing, stored_result(context, job, state, INSPECTION, Inspection))


@dataclass(frozen=True)
class InspectionReport:
    """The progress of an inspection, and what it has found."""

    run: RunView | None
    """None where MLflow is unavailable or was not called, and where the run was removed."""
    inspection: Inspection | None
    """None before the end."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:  # noqa: ARG002
        if self.inspection and self.inspection.fingerprint:
            job.dataset_images = sum(self.inspection.formats.values())
        newest = self.run.newest() if self.run else None
        total = self.run.tags.get(names.TAG_STEPS) if self.run else None
        if newest is None or total is None or newest.attempt < job.since_attempt:
            return
        inspected = int(newest.values.get(metric_keys.SAMPLES, 0))
        running = newest.attempt in [attempt.number for attempt in attempts if attempt.ended_at is None]
        rate = newest.images_per_s if running else None
        left = max(0, int(total) - inspected)
        job.progress = InspectionProgress(
            inspected=inspected,
            total=int(total),
            images_per_s=rate,
            eta_s=0.0 if not left else left / rate if rate else None,
        ).model_dump(mode="json")

    def summary(self) -> str:
        found = self.inspection
        if found is None:
            raise ValueError("an inspection that has not succeeded has nothing to sum up")
        count = len(found.warnings)
        warnings = f", {count} {'warning' if count == 1 else 'warnings'}" if count else ""
        labels = f"{found.class_count:,} classes from {found.labels_from}" if found.class_count else "no labels"
        return f"{found.images:,} images, {labels}{warnings}."

    def result(self) -> Result:
        return Result(inspection=self.inspection)

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Nothing else to write."""

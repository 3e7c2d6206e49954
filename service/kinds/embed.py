"""Jobs that compute the features of a dataset's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ControllerContext
from service.controller.kind import ControllerKind, Reads
from service.db.tables import Attempt, Job
from service.jobs.progress import WARNINGS
from service.jobs.schemas import EmbeddingProgress, Result
from service.jobs.state import State
from service.jobs.submission import check_roots
from service.kinds.stored_result import stored_result
from service.kinds.subjects import find_subject, forward_memory, still_there, subject_source
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.embeddings import SCHEMA, Embeddings
from trainer.protocol.outcome import Reason
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.embed import EmbedSpec
from trainer.spec.job import Kind
from trainer.spec.plan import Schedule


class Embed(ControllerKind[EmbedSpec]):
    """A job that computes features."""

    name = Kind.EMBED
    advice = MappingProxyType(
        {Reason.OUT_OF_MEMORY: "Use nodes with more memory, or lower rows_per_file: a worker holds one file in memory."}
    )

    def check(self, app_state: AppState, caller: Caller, spec: EmbedSpec) -> Subject:
        check_roots(app_state.settings, {"dataset": spec.dataset})
        found = find_subject(app_state, caller, spec.backbone, "backbone")
        return Subject(spec.dataset.uri, found.trained, fixed={"backbone": found.fixed})

    def continuation(self, has_checkpoint: bool) -> str:  # noqa: ARG002
        return "go on with the files that it has not written yet"

    def recheck(self, session: Session, settings: Settings, spec: EmbedSpec) -> None:
        check_roots(settings, {"dataset": spec.dataset})
        still_there(session, spec.backbone, "backbone", "used")

    def schedule(self, session: Session, spec: EmbedSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: EmbedSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return forward_memory(subject.trained) + resolved.file_rows * _bytes_of_row(resolved, subject)

    def reads(self, session: Session, spec: EmbedSpec) -> Reads:
        return Reads(subject_source(session, spec.backbone, "used"))

    def running_message(self, job: Job, attempt: Attempt) -> str:  # noqa: ARG002
        return f"Attempt {attempt.number} is computing features."

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> EmbeddingReport | None:  # noqa: ARG002
        return EmbeddingReport(run, None) if run and not run.gone else None

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> EmbeddingReport:
        existing = run if run and not run.gone else None
        return EmbeddingReport(existing, stored_result(context, job, state, SCHEMA, Embeddings))


def _bytes_of_row(spec: EmbedSpec, subject: Subject) -> int:
    """An estimate: the values of a row in memory, and the file that they become; a ViT-L's where that is unknown."""
    width, patches = 1024, 196
    if subject.trained:
        width, patches = subject.trained.model.embed_dim, subject.trained.model.patches
    return 2 * width * (4 + 2 * patches * spec.patch_tokens)


@dataclass(frozen=True)
class EmbeddingReport:
    """How many images are done, and what the files hold."""

    run: RunView | None
    """None where MLflow is unavailable or was not called, and where the run was removed."""
    embeddings: Embeddings | None
    """None before the end."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:  # noqa: ARG002
        newest = self.run.newest() if self.run else None
        total = self.run.tags.get(names.TAG_STEPS) if self.run else None
        if self.run is None or newest is None or total is None or newest.attempt < job.since_attempt:
            return
        running = newest.attempt in [attempt.number for attempt in attempts if attempt.ended_at is None]
        left, rate = max(0, int(total) - newest.step), newest.images_per_s if running else None
        job.progress = EmbeddingProgress(
            embedded=newest.step,
            total=int(total),
            images_per_s=rate,
            eta_s=0.0 if not left else left / rate if rate else None,
            warnings=WARNINGS.validate_json(self.run.tags.get(names.TAG_DATA_NOTICES, "[]")),
        ).model_dump(mode="json")

    def summary(self) -> str:
        found = self.embeddings
        if found is None:
            raise ValueError("a job that has not succeeded has no features to sum up")
        images, title = f"{found.dataset.images:,} images of {found.dataset.title}", found.backbone.title
        return f"{images} through {title}: {found.width} values each, in {plural(found.files, 'file')}."

    def result(self) -> Result:
        return Result(embeddings=self.embeddings)

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Nothing else to write."""

"""Jobs that measure how good a backbone is."""

from __future__ import annotations

from collections import Counter
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
from service.controller.kind import CannotStart, ControllerKind, Reads
from service.db.tables import Attempt, Job
from service.evaluations.recording import record
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.progress import WARNINGS, gpu_hours
from service.jobs.registering import registered_name
from service.jobs.schemas import EvaluationProgress, Result
from service.jobs.state import State
from service.jobs.submission import check_roots
from service.kinds.run_report import RunReport, final_report
from service.kinds.stored_result import stored_result
from service.kinds.subjects import find_subject, forward_memory, refused, subject_source
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.evaluation import EVALUATION, Evaluation
from trainer.protocol.outcome import Reason
from trainer.spec import metric_keys
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.evaluate import EvaluateSpec, RobustnessProtocol
from trainer.spec.job import Kind
from trainer.spec.measurements import measurements
from trainer.spec.plan import Schedule

COMPLETE: Final = "The classifier is registered."
MEMORY_ADVICE: Final = (
    "Use nodes with more memory, or features.layer: last: the features of all images are kept in memory."
)


class Evaluate(ControllerKind[EvaluateSpec]):
    """A job that measures a backbone."""

    name = Kind.EVALUATE
    advice = MappingProxyType({Reason.OUT_OF_MEMORY: MEMORY_ADVICE})

    def check(self, app_state: AppState, caller: Caller, spec: EvaluateSpec) -> Subject:
        check_roots(app_state.settings, {"dataset": spec.dataset, "test": spec.test})
        found = find_subject(app_state, caller, spec.backbone, "backbone")
        with app_state.database.read() as session:
            check_reference(session, caller, spec)
        return Subject(spec.dataset.uri, found.trained, {"backbone": found.fixed})

    def continuation(self, has_checkpoint: bool) -> str:  # noqa: ARG002
        return "go on with what it has not measured yet"

    def recheck(self, settings: Settings, spec: EvaluateSpec) -> None:
        check_roots(settings, {"dataset": spec.dataset, "test": spec.test})

    def schedule(self, session: Session, spec: EvaluateSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: EvaluateSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return forward_memory(subject.trained)

    def plan_note(self, spec: EvaluateSpec, resolved: EvaluateSpec) -> str:  # noqa: ARG002
        return f"It makes {counted(spec)}.{_registers(spec)}"

    def reads(self, session: Session, spec: EvaluateSpec) -> Reads:
        source = subject_source(session, spec.backbone, "measured")
        wanted = reference_of(spec)
        if wanted is None:
            return Reads(source)
        job = session.get(Job, wanted)
        if job is None or job.deleted_at is not None or not job.artifact_uri:
            raise CannotStart(f"{wanted}, to which the corruption errors were to be relative, has been deleted.")
        return Reads(source, job.artifact_uri)

    def running_message(self, job: Job, attempt: Attempt) -> str:  # noqa: ARG002
        return f"Attempt {attempt.number} is measuring."

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> EvaluationReport | None:  # noqa: ARG002
        return EvaluationReport(run, None, RunReport(run, "")) if run and not run.gone else None

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> EvaluationReport:
        existing = run if run and not run.gone else None
        evaluation = stored_result(context, job, state, EVALUATION, Evaluation)
        registers = registered_name(job) is not None
        registered = final_report(context, job, run, state, COMPLETE) if registers else RunReport(existing, "")
        return EvaluationReport(existing, evaluation, registered)


def reference_of(spec: EvaluateSpec) -> str | None:
    """The evaluation that the corruption errors are relative to; None if there is none."""
    return next((each.reference for each in spec.protocols if isinstance(each, RobustnessProtocol)), None)


def check_reference(session: Session, caller: Caller, spec: EvaluateSpec, path: str = "") -> None:
    """Raises the spec's error for a reference that is no evaluation which has succeeded and the caller sees.

    ``path``: where the spec is in an enclosing one, with a dot.
    """
    wanted, field = reference_of(spec), f"{path}protocols.robustness.reference"
    if wanted is None:
        return
    try:
        job = repository.visible_job(session, wanted, caller)
    except ApiProblem as error:
        raise refused(field, f"{error.detail}: `rcmae evaluations list` shows those you see", wanted) from error
    if job.kind != Kind.EVALUATE or job.state != State.SUCCEEDED:
        raise refused(field, f"is a {job.kind} job that {job.state}: name an evaluation that has succeeded", wanted)


def counted(spec: EvaluateSpec) -> str:
    """The measurements, altogether and by weights and protocol, in words."""
    units = measurements(spec)
    counts: dict[str, Counter[str]] = {"of the backbone": Counter(), "of baselines": Counter()}
    for each in units:
        counts["of the backbone" if each.weights == "backbone" else "of baselines"][each.protocol] += 1
    listed = " and ".join(
        f"{found.total()} {whose} ({', '.join(f'{count} {name}' for name, count in found.items())})"
        for whose, found in counts.items()
        if found
    )
    return f"{plural(len(units), 'measurement')}: {listed}"


def _registers(spec: EvaluateSpec) -> str:
    protocol = spec.registering
    if protocol is None:
        return ""
    formats = " and ".join(protocol.formats)
    lacks = "; not in hf, which needs pooling: cls" if protocol.pooling != "cls" else ""
    return f" It registers the classifier of seed {spec.seed} as {protocol.register_as}, in {formats}{lacks}."


@dataclass(frozen=True)
class EvaluationReport:
    """How far an evaluation is, and what it has found."""

    run: RunView | None
    """None where MLflow is unavailable or was not called, and where the run was removed."""
    evaluation: Evaluation | None
    """None before the end."""
    registered: RunReport
    """The classifier that the job has registered, if it has."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        newest = self.run.newest() if self.run else None
        total = self.run.tags.get(names.TAG_STEPS) if self.run else None
        if self.run is None or newest is None or total is None or newest.attempt < job.since_attempt:
            return
        job.metrics, done = dict(newest.values), int(newest.values.get(metric_keys.SAMPLES, 0))
        running = newest.attempt in [attempt.number for attempt in attempts if attempt.ended_at is None]
        left, rate = max(0, int(total) - done), newest.images_per_s if running else None
        job.progress = EvaluationProgress(
            done=done,
            total=int(total),
            measuring=self.run.tags.get(names.TAG_MEASURING, "") if running else "",
            scores={key: value for key, value in newest.values.items() if key.startswith("eval/")},
            eta_s=0.0 if not left else left / rate if rate else None,
            gpu_hours=gpu_hours(attempts, moment),
            warnings=WARNINGS.validate_json(self.run.tags.get(names.TAG_DATA_NOTICES, "[]")),
        ).model_dump(mode="json")

    def summary(self) -> str:
        found = self.evaluation
        if found is None:
            return "The evaluation is complete."
        own = [each for each in found.scores if each.weights == "backbone"]
        scores = [f"{each.key.removeprefix('eval/')} {each.top1:.3f}" for each in own]
        return f"{found.backbone.title} on {found.test.title}: {', '.join(scores)}. {self.registered.complete}".strip()

    def result(self) -> Result:
        metrics = self.evaluation.metrics if self.evaluation else {}
        return self.registered.result().model_copy(update={"metrics": metrics})

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Add what was found to the table of evaluations, and the classifier to the versions."""
        if self.evaluation:
            record(session, job, self.evaluation)
        self.registered.settled(session, context, job)

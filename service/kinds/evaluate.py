"""Jobs that measure how good a backbone is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ControllerContext
from service.controller.kind import CannotStart, ControllerKind, Reads
from service.db.tables import Attempt, Job
from service.evaluations.recording import record
from service.jobs import evaluations
from service.jobs.progress import WARNINGS, gpu_hours
from service.jobs.registering import registered_name
from service.jobs.schemas import EvaluationProgress, Result
from service.jobs.state import State
from service.jobs.submission import check_roots
from service.kinds.inspected import newest_inspection
from service.kinds.run_report import RunReport, final_report
from service.kinds.stored_result import stored_result
from service.kinds.subjects import (
    Found,
    evaluation_memory,
    find_subject,
    labelled_images,
    refused,
    still_there,
    subject_source,
)
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.evaluation import EVALUATION, Evaluation
from trainer.protocol.inspection import Warned
from trainer.protocol.outcome import Reason
from trainer.protocol.progress import Newest
from trainer.protocol.references import misfit
from trainer.spec import metric_keys
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.evaluate import EvaluateSpec
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
        found, images = check_evaluation(app_state, caller, spec)
        return Subject(spec.dataset.uri, found.trained, images, {"backbone": found.fixed})

    def continuation(self, has_checkpoint: bool) -> str:  # noqa: ARG002
        return "go on with what it has not measured yet"

    def recheck(self, session: Session, settings: Settings, spec: EvaluateSpec) -> None:
        recheck_evaluation(session, settings, spec)

    def schedule(self, session: Session, spec: EvaluateSpec) -> Schedule | None:  # noqa: ARG002
        return None

    def memory_per_worker(self, resolved: EvaluateSpec, subject: Subject, cluster: ClusterShape) -> int:  # noqa: ARG002
        return evaluation_memory(resolved, subject.trained, subject.images)

    def plan_warnings(self, session: Session, spec: EvaluateSpec) -> list[Warned]:
        return evaluation_warnings(session, spec)

    def plan_note(self, spec: EvaluateSpec, resolved: EvaluateSpec) -> str:  # noqa: ARG002
        return f"It makes {counted(spec)}.{_registers(spec)}"

    def trial_progress(
        self,
        spec: EvaluateSpec,  # noqa: ARG002
        newest: Newest,
        steps: str | None,
        running: Sequence[int],  # noqa: ARG002
    ) -> Mapping[str, Any] | None:
        """Its steps are measurements, and all of them are its one epoch."""
        if steps is None:
            return None
        done, total = newest.step, int(steps)
        return {"epoch": done / max(1, total), "epochs": 1, "step": done, "steps": total}

    def reads(self, session: Session, spec: EvaluateSpec) -> Reads:
        return evaluation_reads(session, spec)

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


def check_evaluation(app_state: AppState, caller: Caller, spec: EvaluateSpec, within: str = "") -> Evaluable:
    """What an evaluation measures and on how much; raises the spec's error where the service cannot run it.

    ``within``: the field that holds the spec, with a dot at its end. Reads from the artifact storage: no transaction
    may be open.
    """
    check_roots(app_state.settings, {f"{within}dataset": spec.dataset, f"{within}test": spec.test})
    found = find_subject(app_state, caller, spec.backbone, f"{within}backbone")
    with app_state.database.read() as session:
        check_reference(session, caller, spec, within)
        return Evaluable(found, labelled_images(session, spec.dataset, spec.test))


class Evaluable(NamedTuple):
    """What an evaluation measures."""

    found: Found
    images: int | None
    """Of its datasets, where earlier jobs have counted them."""


def recheck_evaluation(session: Session, settings: Settings, spec: EvaluateSpec, within: str = "") -> None:
    """Raises the spec's error where an evaluation that is about to be queued again cannot run any more."""
    check_roots(settings, {f"{within}dataset": spec.dataset, f"{within}test": spec.test})
    still_there(session, spec.backbone, f"{within}backbone", "measured")
    try:
        _reference_uri(session, spec)
    except CannotStart as error:
        field, value = (spec.reference.field, spec.reference.job) if spec.reference else ("protocols", None)
        raise refused(f"{within}{field}", str(error).rstrip("."), value) from error


def evaluation_reads(session: Session, spec: EvaluateSpec) -> Reads:
    """What an evaluation reads of other jobs; raises `CannotStart`."""
    return Reads(subject_source(session, spec.backbone, "measured"), _reference_uri(session, spec))


def evaluation_warnings(session: Session, spec: EvaluateSpec) -> list[Warned]:
    """What a plan should say of an evaluation."""
    if labelled_images(session, spec.dataset, spec.test) is not None:
        return []
    text = (
        "how many images there are is not known yet: the estimate of memory lacks their features, which all stay in "
        "memory; an inspection counts them"
    )
    return [Warned(code="images_not_counted", message=text)]


def _reference_uri(session: Session, spec: EvaluateSpec) -> str | None:
    if spec.reference is None:
        return None
    job = session.get(Job, spec.reference.job)
    if job is None or job.deleted_at is not None or not job.artifact_uri:
        text = f"{spec.reference.job}, to which the corruption errors were to be relative, has been deleted."
        raise CannotStart(text)
    return job.artifact_uri


def check_reference(
    session: Session, caller: Caller, spec: EvaluateSpec, within: str = "", *, listed: bool = False
) -> None:
    """Raises the spec's error for a reference that the caller does not see, or whose errors do not compare.

    ``within``: the field that holds the spec, with a dot at its end. ``listed``: that field is the list of protocols.
    """
    wanted = spec.reference
    if wanted is None:
        return
    field = within + (wanted.field.removeprefix("protocols.") if listed else wanted.field)
    found = evaluations.document(session, caller, wanted.job)
    if found is None:
        text = "there is no evaluation of this job that has succeeded: `rcmae evaluations list` shows those you see"
        raise refused(field, text, wanted.job)
    inspected = newest_inspection(session, spec.test or spec.dataset)
    why = misfit(wanted, spec, found, inspected.fingerprint if inspected else None)
    if why:
        raise refused(field, why, wanted.job)


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
        job.metrics, done = dict(newest.values), newest.step
        running = newest.attempt in [attempt.number for attempt in attempts if attempt.ended_at is None]
        work, rate = float(self.run.tags.get(names.TAG_WORK, 0)), newest.images_per_s if running else None
        left = max(0.0, work - newest.values.get(metric_keys.SAMPLES, 0))
        job.progress = EvaluationProgress(
            done=done,
            total=int(total),
            measuring=self.run.tags.get(names.TAG_MEASURING, "") if running else "",
            scores={key: value for key, value in newest.values.items() if key.startswith("eval/")},
            eta_s=0.0 if done == int(total) else left / rate if rate else None,
            gpu_hours=gpu_hours(attempts, moment),
            warnings=WARNINGS.validate_json(self.run.tags.get(names.TAG_DATA_NOTICES, "[]")),
        ).model_dump(mode="json")

    def summary(self) -> str:
        found = self.evaluation
        if found is None:
            raise ValueError("an evaluation that has not succeeded has nothing to sum up")
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

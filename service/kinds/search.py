"""Jobs that search: checks, orders for running searches, progress, settling and removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from optuna.trial import TrialState
from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.adapters.mlflow_store import MlflowStore
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ACTOR, ControllerContext, StaleState
from service.controller.dependencies import Refused, Unavailable
from service.controller.kind import NOTHING, ControllerKind, Reads
from service.controller.queue import Task
from service.db.tables import Attempt, Job, now
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.state import State
from service.kinds.evaluate import (
    check_evaluation,
    evaluation_reads,
    evaluation_warnings,
    recheck_evaluation,
)
from service.kinds.inspected import warnings
from service.kinds.pretrain import training_memory
from service.kinds.searched import (
    check_base,
    check_search,
    check_trials,
    chosen_on_test,
    describe_trials,
    trial_schedule,
)
from service.kinds.subjects import evaluation_memory
from service.searches.promotion import promote_trial
from service.searches.status import SearchStatus
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.command import SearchOrders
from trainer.protocol.inspection import Warned
from trainer.protocol.names import STUDY_VARIABLE
from trainer.protocol.outcome import Reason
from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.plan import Schedule, resolve
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec

log = structlog.get_logger()

CLOSING: Final[dict[State, tuple[Reason, str]]] = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "The search was cancelled."),
    State.SUCCEEDED: (Reason.CANCELLED_BY_USER, "The search was stopped while the trial waited to continue."),
    State.FAILED: (Reason.PREEMPTED, "The search failed before the trial had ended."),
}
"""Reason and message of trials that are still open when their search ends: they did not fail by themselves."""


class SearchReport(SearchStatus):
    """A search's trials, and the promotion of the best one."""

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Promote the best trial of a search that has succeeded, where the spec asks for that.

        A repeated promotion changes nothing.

        Where the trial cannot be promoted, the search's message says why.
        """
        promote, leader = self.spec.promote, self.leader()
        if job.state != State.SUCCEEDED or promote is None or leader is None:
            return
        try:
            promoted, new = promote_trial(session, context.app.settings, context.kinds, job, leader, promote, job.owner)
        except (ApiProblem, SpecError) as error:
            why = error.detail if isinstance(error, ApiProblem) else str(error)
            note(session, job, job.reason, f"{job.message} Trial {leader.number} was not promoted: {why}", ACTOR)
        else:
            log.info("trial_promoted", job_id=job.id, trial=leader.number, promoted=promoted.id, new=new)


class Search(ControllerKind[SearchSpec]):
    """A job that searches."""

    name = Kind.SEARCH
    has_trials = True
    stop_refused = None
    from_scratch_refused = (
        "a search continues with the trials it has: retry without this, or submit the spec as a new search"
    )

    def check(self, app_state: AppState, caller: Caller, spec: SearchSpec) -> Subject:
        check_search(app_state.settings, app_state.database, caller, spec)
        base = spec.base_spec
        if isinstance(base, PretrainSpec):
            check_base(app_state.settings, base)
            return Subject(base.dataset.uri, base)
        found, images = check_evaluation(app_state, caller, base, "base.")
        check_trials(app_state, caller, spec, base, found)
        fixed = {"base": spec.base | {"backbone": found.fixed}}
        return Subject(base.dataset.uri, found.trained, images, fixed)

    def continuation(self, has_checkpoint: bool) -> str:  # noqa: ARG002
        return "continue with further trials"

    def recheck(self, session: Session, settings: Settings, spec: SearchSpec) -> None:
        base = spec.base_spec
        if isinstance(base, PretrainSpec):
            check_base(settings, base)
        else:
            recheck_evaluation(session, settings, base, "base.")

    def reads(self, session: Session, spec: SearchSpec) -> Reads:
        base = spec.base_spec
        return NOTHING if isinstance(base, PretrainSpec) else evaluation_reads(session, base)

    def schedule(self, session: Session, spec: SearchSpec) -> Schedule | None:
        return trial_schedule(session, spec)

    def memory_per_worker(self, resolved: SearchSpec, subject: Subject, cluster: ClusterShape) -> int:
        base = resolve(resolved.base_spec, cluster)
        if isinstance(base, PretrainSpec):
            return training_memory(base)
        return evaluation_memory(base, subject.trained, subject.images)

    def plan_warnings(self, session: Session, spec: SearchSpec) -> list[Warned]:
        base = spec.base_spec
        if isinstance(base, PretrainSpec):
            return warnings(session, base)
        return [*chosen_on_test(base), *evaluation_warnings(session, base)]

    def points(self, spec: SearchSpec) -> int | None:
        return spec.size

    def plan_note(self, spec: SearchSpec, resolved: SearchSpec) -> str:
        return describe_trials(spec, resolved)

    def spec_to_resolve(self, job: Job) -> JobSpec:
        """Starts from the requested concurrency: more trials may fit on the cluster by now."""
        return parse_spec(job.run_spec | {"budget": job.spec["budget"]})

    def with_resources(self, document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
        base = document["base"]  # resources apply to each trial
        return {**document, "base": base | {"resources": {**(base.get("resources") or {}), **changes}}}

    def other_folders(self, job: Job, mlflow: MlflowStore) -> Sequence[str]:
        return [trial.artifact_uri for trial in mlflow.trial_runs(job.id)]

    # --- starting an attempt ----------------------------------------------------------------------------------------

    def prepare(self, context: ControllerContext, job: Job, spec: SearchSpec) -> None:
        prefix = "Waits for the studies' database, which stores the search's trials:"
        with context.explain_waiting(job, prefix), context.dependencies.studies.call():
            context.app.studies.make(job.id, spec)

    def write_orders(self, context: ControllerContext, run_id: str, job: Job, spec: SearchSpec) -> None:
        context.app.mlflow.order(run_id, orders(job, spec))

    # --- while it runs ----------------------------------------------------------------------------------------------

    def running_message(self, job: Job, attempt: Attempt) -> str:
        if job.draining:
            return f"Attempt {attempt.number} lets running trials finish, and starts no more."
        fitting, requested = job.run_spec["budget"]["concurrency"], job.spec["budget"]["concurrency"]
        limited = f" with {plural(fitting, 'trial')} at a time: no more of the {requested} requested fit on the cluster"
        return f"Attempt {attempt.number} is searching{limited if fitting < requested else ''}."

    def update_orders(self, context: ControllerContext, job: Job, run: RunView | None) -> bool:
        """Write the search's orders into its run, where they have changed."""
        if not job.run_id or run is None or run.gone:
            return False
        current = orders(job, SearchSpec.parse(job.run_spec))
        if run.tags.get(names.TAG_SEARCH) == current.model_dump_json():
            return True
        try:
            with context.dependencies.mlflow.call():
                context.app.mlflow.order(job.run_id, current)
        except Unavailable as error:
            log.debug("not_told", job_id=job.id, detail=str(error))
            return False
        log.info("search_told", job_id=job.id, **current.model_dump())
        return True

    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> None:
        """Its run tells nothing: its progress is in its study."""

    def report_trials(self, context: ControllerContext, job: Job) -> SearchReport:
        return _report(context, job)

    # --- at its end -------------------------------------------------------------------------------------------------

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> SearchReport:  # noqa: ARG002
        """Its trials; where the search has ended, those still open are closed first."""
        try:
            return _final_report(context, job, state)
        except Unavailable as error:
            raise Unavailable(f"its trials are not known yet: {error}") from error

    def settle_ended(self, context: ControllerContext, job: Job) -> None:
        """Close what is open of a search that a request has ended, and write its result."""
        if not context.app.studies.configured:
            return
        state = State(job.state)
        report = self.settle(context, job, None, state)
        with context.write() as session:
            row = session.get(Job, job.id)
            if row is None or row.state != job.state:
                raise StaleState(f"job {job.id} is {row.state if row else 'deleted'} now")
            report.record(row, repository.attempts(session, row.id), now())
            if state is State.SUCCEEDED and row.result is None:
                row.result = report.result().model_dump(mode="json")
                note(session, row, row.reason, report.summary(), ACTOR)
                report.settled(session, context, row)

    # --- removal and sweeps -----------------------------------------------------------------------------------------

    def remove(self, context: ControllerContext, job: Job, task: Task) -> bool:
        """Remove the files and runs of its trials, one after the other, and its study.

        A trial whose files cannot be removed keeps no other from being removed. Jobs that trials were promoted to stay.
        """
        with context.dependencies.mlflow.call():
            runs = context.app.mlflow.trial_runs(job.id)
        for run in sorted(runs, key=lambda run: run.run_id):
            if run.run_id <= task.cursor:
                continue
            try:
                context.delete_files(job.id, run.artifact_uri)
                with context.dependencies.mlflow.call():
                    context.app.mlflow.delete_run(run.run_id)
            except Refused as error:
                task.trouble = str(error)
            task.cursor = run.run_id
            if task.pauses:
                return False
        if task.trouble:
            raise Unavailable(task.trouble)
        if context.app.studies.configured:
            with context.dependencies.studies.call():
                context.app.studies.delete(job.id)
        else:
            log.warning("study_left", job_id=job.id, detail=f"{STUDY_VARIABLE} is no longer set")
        return True

    def checkpoint_folders(self, context: ControllerContext, job: Job, attempt: Attempt) -> Sequence[str]:  # noqa: ARG002
        """The folders of all starts of its trials, except the last start of a trial that has not ended.

        Trials number their own starts: that last one may be under way in a later attempt of the search.
        """
        with context.dependencies.studies.call():
            trials = context.app.studies.trials(job.id)
        folders = []
        for trial in trials:
            folder, starts = (trial.user_attrs.get(key) for key in (names.TRIAL_FOLDER, names.TRIAL_ATTEMPTS))
            ended = (starts or ())[: None if trial.state.is_finished() else -1]
            folders += [f"{folder}/{names.checkpoint_folder(start)}" for start in ended if folder]
        return folders


def orders(job: Job, spec: SearchSpec) -> SearchOrders:
    """The orders of a search, from its budget and the requests so far."""
    return SearchOrders(
        trials=spec.trials,
        concurrency=spec.budget.concurrency,
        max_failed=spec.budget.max_failed,
        max_hours=spec.budget.max_hours,
        draining=job.draining,
        stopped=tuple(sorted(job.stopped_trials or ())),
    )


def _report(context: ControllerContext, job: Job) -> SearchReport:
    studies = context.app.studies
    with context.dependencies.studies.call():
        return SearchReport(SearchSpec.parse(job.run_spec), studies.trials(job.id), studies.seconds(job.id))


def _final_report(context: ControllerContext, job: Job, state: State) -> SearchReport:
    report = _report(context, job)
    open_trials = [trial for trial in report.trials if trial.state is TrialState.RUNNING]
    if not state.terminal or not open_trials:
        return report
    reason, message = CLOSING[state]
    for trial in open_trials:  # their runs first: an interrupted call finds the trials still open
        run_id = trial.user_attrs.get(names.TRIAL_RUN)
        if run_id:
            with context.dependencies.mlflow.call():
                context.app.mlflow.end_run(run_id, "FAILED" if state is State.FAILED else "KILLED")
    with context.dependencies.studies.call():
        closed = context.app.studies.close_trials(job.id, reason.value, message)
    log.info("trials_closed", job_id=job.id, state=state, trials=closed)
    return _report(context, job)

"""Jobs that search: their checks, the orders of running ones, their progress, their end and removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from optuna.trial import TrialState
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.adapters.mlflow_store import MlflowStore
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Subject
from service.controller.context import ACTOR, ControllerContext, StaleState, guarded
from service.controller.dependencies import Away
from service.controller.kind import ControllerKind
from service.db.database import Database
from service.db.tables import Attempt, Job, now
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.schemas import State
from service.jobs.submission import below, check_places, schedule
from service.kinds.pretrain import training_memory
from service.searches.promotion import promote_trial
from service.searches.standing import Standing
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.command import SearchOrders
from trainer.protocol.names import STUDY_VARIABLE
from trainer.protocol.outcome import Reason
from trainer.spec.base import Problem, SpecError
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.plan import Schedule, resolve
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec

log = structlog.get_logger()

BATCH: Final = "optimization.global_batch_size"
CLOSED: Final[dict[State, tuple[Reason, str]]] = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "The search was cancelled."),
    State.SUCCEEDED: (Reason.CANCELLED_BY_USER, "The search was stopped while the trial waited to go on."),
    State.FAILED: (Reason.PREEMPTED, "The search failed before the trial had ended."),
}
"""What is said of a trial that its search's end has left open: it has not failed by an error of its own."""


class SearchStanding(Standing):
    """A search's trials, and the promotion of the best one."""

    def succeeded(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Promote the best trial, where the spec asks for that; done again, it is the same.

        Where it cannot be promoted, the search says why.
        """
        promote, leader = self.spec.promote, self.leader()
        if promote is None or leader is None:
            return
        try:
            promoted, new = promote_trial(session, context.app.settings, job, leader, promote, job.owner)
        except (ApiProblem, SpecError) as error:
            said = error.detail if isinstance(error, ApiProblem) else str(error)
            note(session, job, job.reason, f"{job.message} Trial {leader.number} was not promoted: {said}", ACTOR)
        else:
            log.info("trial_promoted", job_id=job.id, trial=leader.number, promoted=promoted.id, new=new)


class Search(ControllerKind[SearchSpec]):
    """A job that searches."""

    name = Kind.SEARCH
    has_trials = True
    from_scratch_refused = (
        "a search goes on from the trials it has: retry it without this, or submit its spec as a new one"
    )
    goes_on = "with further trials"

    def check(self, app_state: AppState, caller: Caller, spec: SearchSpec) -> Subject:
        check_search(app_state.settings, app_state.database, caller, spec)
        return Subject(spec.base_spec.dataset.uri, spec.base_spec)

    def check_again(self, settings: Settings, spec: SearchSpec) -> None:
        check_base(settings, spec)

    def schedule(self, session: Session, spec: SearchSpec) -> Schedule | None:
        return trial_schedule(session, spec)

    def memory_per_worker(self, resolved: SearchSpec, trained: PretrainSpec, cluster: ClusterShape) -> int:  # noqa: ARG002
        return training_memory(resolve(resolved.base_spec, cluster))

    def plan_note(self, spec: SearchSpec, resolved: SearchSpec) -> str:
        return how_many(spec, resolved)

    def spec_to_resolve(self, job: Job) -> JobSpec:
        """A search is to have as many trials at a time as were asked for, where they fit by now."""
        return parse_spec(job.run_spec | {"budget": job.spec["budget"]})

    def with_resources(self, document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
        base = document["base"]  # they are each trial's
        return {**document, "base": base | {"resources": {**(base.get("resources") or {}), **changes}}}

    def registers_as(self, spec: SearchSpec) -> str | None:  # noqa: ARG002
        return None  # its trials register nothing

    def other_folders(self, job: Job, mlflow: MlflowStore) -> Sequence[str]:
        return [trial.artifact_uri for trial in mlflow.trial_runs(job.id)]

    # --- starting an attempt ----------------------------------------------------------------------------------------

    def prepare(self, context: ControllerContext, job: Job, spec: SearchSpec) -> None:
        waits = "Waits for the studies' database, which keeps its trials:"
        with context.explained(job, waits), context.needs.studies.asked():
            context.app.studies.make(job.id, spec)

    def order(self, context: ControllerContext, run_id: str, job: Job, spec: SearchSpec) -> None:
        context.app.mlflow.order(run_id, orders(job, spec))

    # --- while it runs ----------------------------------------------------------------------------------------------

    def working(self, job: Job, attempt: Attempt) -> str:
        if job.draining:
            return f"Attempt {attempt.number} lets the trials that run finish, and begins no other."
        fit, wanted = job.run_spec["budget"]["concurrency"], job.spec["budget"]["concurrency"]
        few = f", {plural(fit, 'trial')} at a time: of the {wanted} asked for no more fit on the cluster"
        return f"Attempt {attempt.number} is searching{few if fit < wanted else ''}."

    def direct(self, context: ControllerContext, job: Job, run: RunView | None) -> None:
        """Tell a search what it is to do, where its run says something else."""
        if not job.run_id or run is None or run.gone:
            return
        wanted = orders(job, SearchSpec.parse(job.run_spec))
        if run.tags.get(names.TAG_SEARCH) == wanted.model_dump_json():
            return
        try:
            with context.needs.mlflow.asked():
                context.app.mlflow.order(job.run_id, wanted)
        except Away as error:
            log.debug("not_told", job_id=job.id, detail=str(error))
        else:
            log.info("search_told", job_id=job.id, **wanted.model_dump())

    def observe(self, context: ControllerContext, job: Job, run: RunView | None) -> SearchStanding | None:  # noqa: ARG002
        try:
            return _standing(context, job)
        except Away:
            return None  # nothing is known of its trials while their database is out of reach

    # --- at its end -------------------------------------------------------------------------------------------------

    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> SearchStanding:  # noqa: ARG002
        """Its trials, none of them left open where the search has ended."""
        try:
            return _settled(context, job, state)
        except Away as error:
            raise Away(f"its trials are not known yet: {error}") from error

    def finish(self, context: ControllerContext) -> None:
        if not context.app.studies.configured:
            return
        with context.app.database.read() as session:
            jobs = _unsettled(session)
        for job in jobs:
            with guarded(job):
                self._finish(context, job)

    def _finish(self, context: ControllerContext, loaded: Job) -> None:
        state = State(loaded.state)
        standing = self.settle(context, loaded, None, state)
        with context.write() as session:
            job = session.get(Job, loaded.id)
            if job is None or job.state != loaded.state:
                raise StaleState(f"job {loaded.id} is {job.state if job else 'deleted'} now")
            standing.record(job, repository.attempts(session, job.id), now())
            if state is State.SUCCEEDED:
                job.result = standing.result().model_dump(mode="json")
                note(session, job, job.reason, standing.summary(), ACTOR)
                standing.succeeded(session, context, job)

    # --- removal and sweeps -----------------------------------------------------------------------------------------

    def remove(self, context: ControllerContext, job: Job) -> None:
        """Its trials: their files and runs, and the study. Jobs that trials were promoted to stay."""
        with context.needs.mlflow.asked():
            runs = context.app.mlflow.trial_runs(job.id)
        for run in runs:
            context.delete_files(job.id, run.artifact_uri)
            with context.needs.mlflow.asked():
                context.app.mlflow.delete_run(run.run_id)
        if context.app.studies.configured:
            with context.needs.studies.asked():
                context.app.studies.delete(job.id)
        else:
            log.warning("study_left", job_id=job.id, detail=f"{STUDY_VARIABLE} is not set any more")

    def checkpoint_folders(self, context: ControllerContext, job: Job, attempt: Attempt) -> Sequence[str]:  # noqa: ARG002
        """A search's trials count starts of their own: the last start of one that goes on may be under way in a later
        attempt.
        """
        with context.needs.studies.asked():
            trials = context.app.studies.trials(job.id)
        found = []
        for trial in trials:
            folder, starts = (trial.user_attrs.get(key) for key in (names.TRIAL_FOLDER, names.TRIAL_ATTEMPTS))
            over = (starts or ())[: None if trial.state.is_finished() else -1]
            found += [f"{folder}/{names.checkpoint_folder(start)}" for start in over if folder]
        return found


def orders(job: Job, spec: SearchSpec) -> SearchOrders:
    """What a search is to do, by what people have asked for until now."""
    return SearchOrders(
        trials=spec.trials,
        concurrency=spec.budget.concurrency,
        max_failed=spec.budget.max_failed,
        max_hours=spec.budget.max_hours,
        draining=job.draining,
        stopped=tuple(sorted(job.stopped_trials or ())),
    )


def _standing(context: ControllerContext, job: Job) -> SearchStanding:
    studies = context.app.studies
    with context.needs.studies.asked():
        return SearchStanding(SearchSpec.parse(job.run_spec), studies.trials(job.id), studies.seconds(job.id))


def _settled(context: ControllerContext, job: Job, state: State) -> SearchStanding:
    standing = _standing(context, job)
    left = [trial for trial in standing.trials if trial.state is TrialState.RUNNING]
    if not state.terminal or not left:
        return standing
    reason, message = CLOSED[state]
    for trial in left:  # their runs first: while the study shows them as running, they are found again
        run_id = trial.user_attrs.get(names.TRIAL_RUN)
        if run_id:
            with context.needs.mlflow.asked():
                context.app.mlflow.end_run(run_id, "FAILED" if state is State.FAILED else "KILLED")
    with context.needs.studies.asked():
        closed = context.app.studies.close_trials(job.id, reason.value, message)
    log.info("trials_closed", job_id=job.id, state=state, trials=closed)
    return _standing(context, job)


def _unsettled(session: Session) -> list[Job]:
    """Searches that have ended and still show trials that run, or that have succeeded and have no result: people end
    a search that is queued or paused without the controller.
    """
    ended = [state.value for state in State if state.terminal]
    no_result = and_(Job.state == State.SUCCEEDED, Job.result.is_(None))
    open_trials = Job.progress[("trials", "running")].as_integer() > 0
    query = select(Job).where(Job.state.in_(ended), Job.kind == Kind.SEARCH, Job.deleted_at.is_(None))
    return list(session.scalars(query.where(or_(no_result, open_trials)).order_by(Job.id)))


# --- checks before it is a job ---


def check_search(settings: Settings, database: Database, caller: Caller, spec: SearchSpec) -> None:
    """Raises `SpecError` where a search cannot be made here."""
    if settings.study_url is None:
        text = f"searches are not set up on this service: set {STUDY_VARIABLE}, or submit trials as jobs of their own"
        raise SpecError([Problem("kind", "/kind", spec.kind, text)])
    check_base(settings, spec)
    with database.read() as session:
        for index, earlier in enumerate(spec.warm_start):
            why = _cannot_learn_from(session, caller, spec, earlier)
            if why:
                raise SpecError([Problem(f"warm_start.{index}", f"/warm_start/{index}", earlier, why)])


def check_base(settings: Settings, spec: SearchSpec) -> None:
    """Raises `SpecError` where the trials' datasets lie where none may."""
    try:
        check_places(settings, spec.base_spec)
    except SpecError as error:
        raise below("base", error) from error


def _cannot_learn_from(session: Session, caller: Caller, spec: SearchSpec, earlier: str) -> str | None:
    """Why a search cannot go by the trials of an earlier one; None where it can."""
    try:
        job: Job = repository.visible_job(session, earlier, caller)
    except ApiProblem as error:
        return f"{error.detail}: name an earlier search of yours"
    if job.kind != Kind.SEARCH:
        return f"is a {job.kind} job: name a search"
    other = SearchSpec.parse(job.spec)
    if set(other.space) != set(spec.space):
        return f"is over another space: {', '.join(sorted(other.space))}"
    if other.objectives != spec.objectives:
        sought = ", ".join(f"{each.metric} ({each.mode})" for each in other.objectives)
        return f"has another objective: {sought}"
    return None


def trial_schedule(session: Session, spec: SearchSpec) -> Schedule | None:
    """Steps of a trial, where the number of images is known and the batch is the same for all.

    Raises `SpecError` where one batch does not fit.
    """
    if BATCH in spec.space:
        return None
    try:
        return schedule(session, spec.base_spec)
    except SpecError as error:
        raise below("base", error) from error


def how_many(spec: SearchSpec, resolved: SearchSpec) -> str:
    """How many trials there are, in all and at a time, and why fewer than were asked for; for people."""
    wanted, fitting = spec.budget.concurrency, resolved.budget.concurrency
    told = f"It makes {plural(spec.trials, 'trial')}"
    if spec.algorithm.name == "grid":
        told += f" of the grid's {spec.grid_size}"
    told += f", {fitting} at a time."
    if fitting < wanted:
        told += f" {wanted} were asked for: the cluster has room for {plural(fitting, 'trial')} of this size."
    return told

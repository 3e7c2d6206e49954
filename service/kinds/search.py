"""Jobs that search: what a running one is told, how far it is, and what is left to do once it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import RunView
from service.controller.context import ACTOR, Control, StaleState, guarded
from service.controller.dependencies import Away
from service.db.tables import Attempt, Job, now
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.progress import gpu_hours
from service.jobs.schemas import Result, SearchProgress, State
from service.searches import trials as made
from service.searches.promotion import promote_trial
from service.searches.schemas import RepeatView
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.command import SearchOrders
from trainer.protocol.outcome import Reason
from trainer.spec.base import SpecError
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.plan import plural
from trainer.spec.search import SearchSpec

log = structlog.get_logger()

CLOSED: Final[dict[State, tuple[Reason, str]]] = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "The search was cancelled."),
    State.SUCCEEDED: (Reason.CANCELLED_BY_USER, "The search was stopped while the trial waited to go on."),
    State.FAILED: (Reason.PREEMPTED, "The search failed before the trial had ended."),
}
"""What is said of a trial that its search's end has left open: it has not failed by an error of its own."""


@dataclass(frozen=True)
class Standing:
    """A search's trials as they are now."""

    spec: SearchSpec
    trials: Sequence[FrozenTrial]
    """By number."""
    seconds: float
    """For which they have run."""

    def progress(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> SearchProgress:
        """How far it is. The end is foretold while an attempt runs."""
        leader = self.leader()
        values = made.values_of(leader, self.spec) if leader else None
        runs = any(attempt.ended_at is None for attempt in attempts)
        return SearchProgress(
            trials=made.counts(self.trials),
            budget=self.spec.trials,
            best_trial=leader.number if leader else None,
            best_value=values[0] if values else None,
            eta_s=made.eta(self.trials, self.spec, self.seconds, job.draining) if runs else None,
            gpu_hours=gpu_hours(attempts, moment),
        )

    def leader(self) -> FrozenTrial | None:
        """The trial that is called best: where some were repeated, the best of those by their mean."""
        repeated = self._repeats()
        return self.trials[repeated[0].number] if repeated else made.leader(self.trials, self.spec)

    def result(self) -> Result:
        """The best value of each objective; where trials were repeated, the first one's best mean."""
        front = [values for trial in made.best(self.trials, self.spec) if (values := made.values_of(trial, self.spec))]
        columns = zip(self.spec.objectives, zip(*front, strict=True), strict=False)  # no columns without a value
        metrics = {each.metric: max(column) if each.mode == "max" else min(column) for each, column in columns}
        repeated = self._repeats()
        if repeated:
            metrics[self.spec.objectives[0].metric] = repeated[0].mean
        return Result(metrics=metrics)

    def summary(self) -> str:
        """A sentence on what the search has come to."""
        ended = self._ended()
        begin = "The search is complete" if ended >= self.spec.trials else "The search has ended"
        return f"{begin}: {plural(ended, 'trial')}, {self._best()}."

    def _best(self) -> str:
        front, metric = made.best(self.trials, self.spec), self.spec.objectives[0].metric
        if not front:
            return "none of them with a value"
        repeated = self._repeats()
        if repeated:
            first = repeated[0]
            mean = f"{first.mean:.6g} on average over {len(first.values)} seeds"
            return f"the best is trial {first.number} with {metric} {mean}"
        if len(self.spec.objectives) > 1:
            return f"{len(front)} of which no other beats: {', '.join(str(trial.number) for trial in front)}"
        return f"the best is trial {front[0].number} with {metric} {self.result().metrics[metric]:.6g}"

    def _repeats(self) -> list[RepeatView]:
        """The trials that were repeated, the best first; none in most searches, and then no trial is looked at."""
        return made.repeats(self.trials, self.spec) if self.spec.repeats.best else []

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.trials)


def search_spec(job: Job) -> SearchSpec | None:
    """What a search runs; None for a job of another kind."""
    spec = parse_spec(job.run_spec) if job.kind == Kind.SEARCH else None
    return spec if isinstance(spec, SearchSpec) else None


def to_resolve(job: Job) -> JobSpec:
    """What the next attempt's spec is resolved from: a search is to have as many trials at a time as were asked for,
    where they fit by now.
    """
    again = {"budget": job.spec["budget"]} if job.kind == Kind.SEARCH else {}
    return parse_spec(job.run_spec | again)


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


def working(job: Job, attempt: Attempt) -> str:
    """What a running search does, in a sentence that stays the same while trials come and go."""
    if job.draining:
        return f"Attempt {attempt.number} lets the trials that run finish, and begins no other."
    fit, wanted = job.run_spec["budget"]["concurrency"], job.spec["budget"]["concurrency"]
    few = f", {plural(fit, 'trial')} at a time: of the {wanted} asked for no more fit on the cluster"
    return f"Attempt {attempt.number} is searching{few if fit < wanted else ''}."


class Searches:
    """What the controller does for searches beyond what it does for every job."""

    def __init__(self, control: Control) -> None:
        self._control, self._needs = control, control.needs

    def direct(self, job: Job, run: RunView | None) -> None:
        """Tell a search what it is to do, where its run says something else."""
        spec = search_spec(job)
        if spec is None or not job.run_id or run is None or run.gone:
            return
        wanted = orders(job, spec)
        if run.tags.get(names.TAG_SEARCH) == wanted.model_dump_json():
            return
        try:
            with self._needs.mlflow.asked():
                self._control.mlflow.order(job.run_id, wanted)
        except Away as error:
            log.debug("not_told", job_id=job.id, detail=str(error))
        else:
            log.info("search_told", job_id=job.id, **wanted.model_dump())

    def standing(self, job: Job) -> Standing | None:
        """A search's trials; None for a job of another kind, and while their database is away."""
        spec = search_spec(job)
        try:
            return self._standing(job.id, spec) if spec else None
        except Away:
            return None  # out of reach is an answer: nothing is known of them

    def _standing(self, job_id: str, spec: SearchSpec) -> Standing:
        with self._needs.studies.asked():
            return Standing(spec, self._control.studies.trials(job_id), self._control.studies.seconds(job_id))

    def settled(self, job: Job, state: State) -> Standing | None:
        """A search's trials when no attempt of it runs any more, none of them left open where it has ended.

        None for a job of another kind; raises `Away`. Interrupted, it is done again.
        """
        spec = search_spec(job)
        if spec is None:
            return None
        found = self._standing(job.id, spec)
        left = [trial for trial in found.trials if trial.state is TrialState.RUNNING]
        if not state.terminal or not left:
            return found
        reason, message = CLOSED[state]
        for trial in left:  # their runs first: while the study shows them as running, they are found again
            run_id = trial.user_attrs.get(names.TRIAL_RUN)
            if run_id:
                with self._needs.mlflow.asked():
                    self._control.mlflow.end_run(run_id, "FAILED" if state is State.FAILED else "KILLED")
        with self._needs.studies.asked():
            closed = self._control.studies.close_trials(job.id, reason.value, message)
        log.info("trials_closed", job_id=job.id, state=state, trials=closed)
        return self._standing(job.id, spec)

    def finish(self) -> None:
        """Settle searches that people have ended while no attempt of theirs ran."""
        if not self._control.studies.named:
            return
        with self._control.database.read() as session:
            jobs = repository.unsettled_searches(session)
        for job in jobs:
            with guarded(job):
                self._finish(job)

    def _finish(self, loaded: Job) -> None:
        state = State(loaded.state)
        standing = self.settled(loaded, state)
        if standing is None:
            return
        with self._control.write() as session:
            job = repository.get(session, loaded.id)
            if job.state != loaded.state:
                raise StaleState(f"job {job.id} is {job.state} now")
            record(job, repository.attempts(session, job.id), standing, now())
            if state is State.SUCCEEDED:
                job.result = standing.result().model_dump(mode="json")
                note(session, job, job.reason, standing.summary(), ACTOR)
                promote_best(session, self._control.settings, job, standing)


def promote_best(session: Session, settings: Settings, job: Job, standing: Standing) -> None:
    """Promote the best trial of a search that has succeeded, where its spec asks for that; done again, it is the same.

    What keeps it from being promoted the search says.
    """
    promote, leader = standing.spec.promote, standing.leader()
    if promote is None or leader is None:
        return
    try:
        promoted, new = promote_trial(session, settings, job, leader, promote, job.owner)
    except (ApiProblem, SpecError) as error:
        said = error.detail if isinstance(error, ApiProblem) else str(error)
        note(session, job, job.reason, f"{job.message} Trial {leader.number} was not promoted: {said}", ACTOR)
    else:
        log.info("trial_promoted", job_id=job.id, trial=leader.number, promoted=promoted.id, new=new)


def record(job: Job, attempts: Sequence[Attempt], standing: Standing, moment: datetime) -> None:
    """Take over how far a search is."""
    job.progress = standing.progress(job, attempts, moment).model_dump(mode="json")

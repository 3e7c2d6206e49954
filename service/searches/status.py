"""A search's trials as they are now: how far it is, what is best, and what it has come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial

from service.db.tables import Attempt, Job
from service.jobs.progress import gpu_hours
from service.jobs.schemas import Result, SearchProgress
from service.searches import trials as made
from service.searches.schemas import RepeatView
from trainer.spec.cluster import plural
from trainer.spec.search import SearchSpec


@dataclass(frozen=True)
class SearchStatus:
    """A search's trials as they are now."""

    spec: SearchSpec
    trials: Sequence[FrozenTrial]
    """By number."""
    seconds: float
    """For which they have run."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        """Take over how far the search is."""
        job.progress = self.progress(job, attempts, moment).model_dump(mode="json")

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

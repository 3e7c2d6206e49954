"""The status of a search, from its trials: progress, best trial, result and summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial

from service.db.tables import Attempt, Job
from service.jobs.progress import gpu_hours
from service.jobs.schemas import Result, SearchProgress
from service.searches import analysis
from service.searches.schemas import RepeatView
from trainer.spec.cluster import plural
from trainer.spec.search import SearchSpec


@dataclass(frozen=True)
class SearchStatus:
    """The status of a search, from its trials at one moment."""

    spec: SearchSpec
    trials: Sequence[FrozenTrial]
    """By number."""
    seconds: float
    """Time for which the search's attempts have run."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        """Write the progress into the job's row, and drop the requests to stop trials that have ended."""
        job.progress = self.progress(job, attempts, moment).model_dump(mode="json")
        ended = {trial.number for trial in self.trials if trial.state.is_finished()}
        job.stopped_trials = [number for number in job.stopped_trials or () if number not in ended] or None

    def progress(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> SearchProgress:
        """The search's progress. Its end is estimated only while an attempt runs."""
        leader = self.leader()
        values = analysis.values_of(leader, self.spec) if leader else None
        running = any(attempt.ended_at is None for attempt in attempts)
        return SearchProgress(
            trials=analysis.counts(self.trials),
            budget=self.spec.trials,
            best_trial=leader.number if leader else None,
            best_value=values[0] if values else None,
            eta_s=analysis.eta(self.trials, self.spec, self.seconds, job.draining) if running else None,
            gpu_hours=gpu_hours(attempts, moment),
        )

    def leader(self) -> FrozenTrial | None:
        """The best trial; where trials were repeated, the best of those by the mean."""
        repeated = self._repeats()
        return self.trials[repeated[0].number] if repeated else analysis.leader(self.trials, self.spec)

    def result(self) -> Result:
        """The best value of each objective; where trials were repeated, the first one's best mean."""
        best = (analysis.values_of(trial, self.spec) for trial in analysis.best(self.trials, self.spec))
        front = [values for values in best if values]
        columns = zip(self.spec.objectives, zip(*front, strict=True), strict=False)  # empty where no trial has a value
        metrics = {each.metric: max(column) if each.mode == "max" else min(column) for each, column in columns}
        repeated = self._repeats()
        if repeated:
            metrics[self.spec.objectives[0].metric] = repeated[0].mean
        return Result(metrics=metrics)

    def summary(self) -> str:
        """A sentence that sums up the search."""
        ended, size = self._ended(), self.spec.size
        opening = "The search is complete" if ended >= self.spec.trials else "The search has ended"
        if size is not None and analysis.counted(trial for trial in self.trials if trial.state.is_finished()) >= size:
            opening += f", as all {plural(size, 'point')} of its space have been tried"
        return f"{opening}: {plural(ended, 'trial')}, {self._best()}."

    def _best(self) -> str:
        front, metric = analysis.best(self.trials, self.spec), self.spec.objectives[0].metric
        if not front:
            return "none of them with a value"
        repeated = self._repeats()
        if repeated:
            first = repeated[0]
            mean = f"{first.mean:.6g} on average over {len(first.values)} seeds"
            return f"the best is trial {first.number} with {metric} {mean}"
        if len(self.spec.objectives) > 1:
            return f"{len(front)} of them on the Pareto front: {', '.join(str(trial.number) for trial in front)}"
        return f"the best is trial {front[0].number} with {metric} {self.result().metrics[metric]:.6g}"

    def _repeats(self) -> list[RepeatView]:
        """The repeated trials, the best first; empty where the spec asks for no repeats."""
        return analysis.repeats(self.trials, self.spec) if self.spec.repeats.best else []

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.trials)

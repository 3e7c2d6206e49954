"""Schedulers: which trials are stopped early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from trainer.attempt.evidence import how_it_died
from trainer.protocol import names
from trainer.search.searcher import StudySearch
from trainer.spec import metric_keys
from trainer.spec.search import SearchSpec


def make_scheduler(spec: SearchSpec, search: StudySearch) -> TrialScheduler:
    """The search's scheduler; in a new attempt it knows the results of earlier ones."""
    if spec.scheduler.name == "none":
        return NoEarlyStopping(search)
    return Asha(spec, search) if spec.scheduler.name == "asha" else Median(spec, search)


@dataclass(frozen=True)
class _StudyTrial:
    """A trial as Ray's schedulers see it: the same one however often it starts. Ray Tune has another for each start."""

    trial_id: str

    @classmethod
    def of(cls, number: int) -> _StudyTrial:
        return cls(f"trial {number}")


class _SchedulerMixin:
    """Common to all schedulers: repeats and finished trials are never stopped; why a trial stopped or died is kept."""

    _search: StudySearch

    def _evaluated(self) -> list[tuple[_StudyTrial, list[tuple[int, float]]]]:
        """The trials that are compared and that the study has evaluations of, which are sorted by epoch."""
        return [
            (_StudyTrial.of(trial.number), sorted(trial.intermediate_values.items()))
            for trial in self._search.trials()
            if trial.intermediate_values and names.WITHOUT_OWN_RESULT.isdisjoint(trial.user_attrs)
        ]

    def _filter_decision(
        self, trial: TuneTrial, result: Mapping[str, Any], decide: Callable[[_StudyTrial], str]
    ) -> str:
        """The action for a trial; ``decide`` asks Ray's scheduler, once for each evaluation."""
        running = self._search.running.get(trial.trial_id)
        if running is None or running.repeat or metric_keys.EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        epoch = float(result[metric_keys.EPOCH])
        if round(epoch) in running.reported:  # a resumed trial repeats some evaluations
            return str(TrialScheduler.CONTINUE)
        action = str(decide(_StudyTrial.of(running.number)))
        if action == TrialScheduler.STOP and epoch >= self._search.epochs_of(running):
            return str(TrialScheduler.CONTINUE)  # it is at its end, and still has to store its last checkpoint
        if action == TrialScheduler.STOP:
            running.stop_reason = self._explain_stop(epoch, float(result[str(self._search.metric)]))
        return action

    def _explain_stop(self, epoch: float, value: float) -> str:
        raise NotImplementedError

    def _record_death(self, trial: TuneTrial) -> None:
        running = self._search.running.get(trial.trial_id)
        if running is not None:
            running.death = how_it_died(str(trial.get_pickled_error()))


class NoEarlyStopping(_SchedulerMixin, FIFOScheduler):
    """Stops no trial."""

    def __init__(self, search: StudySearch) -> None:
        FIFOScheduler.__init__(self)
        self._search = search

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._record_death(trial)
        super().on_trial_error(tune_controller, trial)


class Asha(_SchedulerMixin, AsyncHyperBandScheduler):
    """Asynchronous successive halving. In a new attempt its rungs are filled from the study."""

    def __init__(self, spec: SearchSpec, search: StudySearch) -> None:
        objective = spec.objectives[0]
        AsyncHyperBandScheduler.__init__(
            self, time_attr=metric_keys.EPOCH, metric=objective.metric, mode=objective.mode, max_t=spec.epochs,
            grace_period=spec.grace_epochs, reduction_factor=spec.scheduler.reduction_factor, stop_last_trials=False,
        )  # fmt: skip
        self._search, self._factor = search, spec.scheduler.reduction_factor
        for trial, evaluations in self._evaluated():
            for epoch, value in evaluations:
                self._judge(trial, epoch, value)

    def _judge(self, trial: Any, epoch: float, value: float) -> str:
        """Ray's decision on a trial; there is one bracket, whose rungs keep the trial's value."""
        bracket: Any = self._brackets[0]
        return str(bracket.on_result(trial, epoch, (self._metric_op or 1.0) * value))

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing: all trials are in the one bracket."""

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:  # noqa: ARG002
        return self._filter_decision(
            trial, result, lambda known: self._judge(known, result[metric_keys.EPOCH], result[str(self._metric)])
        )

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._record_death(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Nothing: the last report has been judged already."""

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing: its values stay in the rungs."""

    def _explain_stop(self, epoch: float, value: float) -> str:
        return (
            f"Stopped by asha at epoch {epoch:g} with {value:.6g}: not among the best 1/{self._factor} of the "
            "trials that have reached this epoch"
        )


class Median(_SchedulerMixin, MedianStoppingRule):
    """Stops a trial that is worse than the median of the others. In a new attempt it reads them from the study."""

    def __init__(self, spec: SearchSpec, search: StudySearch) -> None:
        objective = spec.objectives[0]
        MedianStoppingRule.__init__(
            self,
            time_attr=metric_keys.EPOCH,
            metric=objective.metric,
            mode=objective.mode,
            grace_period=spec.grace_epochs,
        )
        self._search = search
        results: dict[Any, list[dict[str, Any]]] = self._results
        for trial, evaluations in self._evaluated():
            results[trial] = [{metric_keys.EPOCH: epoch, str(self._metric): value} for epoch, value in evaluations]

    def _on_insufficient_samples(self, tune_controller: Any, trial: TuneTrial, time: float) -> str:  # noqa: ARG002
        """Ray's own rule would pause the trial in favour of waiting ones."""
        return str(TrialScheduler.CONTINUE)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decide: Any = super().on_trial_result
        return self._filter_decision(trial, result, lambda known: str(decide(tune_controller, known, result)))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._record_death(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Nothing: the last report has been judged already."""

    def _explain_stop(self, epoch: float, value: float) -> str:
        return f"Stopped by median at epoch {epoch:g} with {value:.6g}: the median of the others is better"

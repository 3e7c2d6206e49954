"""Schedulers: which trials are stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from optuna.trial import FrozenTrial
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


class _SchedulerMixin:
    """Common to all schedulers: repeats and finished trials are never stopped; why a trial stopped or died is kept."""

    _search: StudySearch

    def _filter_decision(self, trial: TuneTrial, result: Mapping[str, Any], decide: Any) -> str:
        """The action for a trial; ``decide`` asks Ray's scheduler."""
        running = self._search.running.get(trial.trial_id)
        if running is None or running.repeat or metric_keys.EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        action = str(decide())
        epoch = float(result[metric_keys.EPOCH])
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
        for trial in search.trials():
            if trial.state.is_finished() and names.TRIAL_REPEAT_OF not in trial.user_attrs:
                self._replay(f"trial {trial.number}", trial)

    def _replay(self, name: str, trial: FrozenTrial) -> None:
        for epoch, value in sorted(trial.intermediate_values.items()):
            named: Any = SimpleNamespace(trial_id=name)
            self._brackets[0].on_result(named, epoch, (self._metric_op or 1.0) * value)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        running = self._search.running.get(trial.trial_id)
        if running and not running.repeat:
            self._replay(trial.trial_id, self._search.trials()[running.number])

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decide = super().on_trial_result
        return self._filter_decision(trial, result, lambda: decide(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._record_death(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:  # noqa: ARG002
        """Without Ray's final evaluation: the last report has been judged already."""
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:  # noqa: ARG002
        self._trial_info.pop(trial.trial_id, None)

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
        for trial in search.trials():
            if trial.state.is_finished() and names.TRIAL_REPEAT_OF not in trial.user_attrs:
                self._replay(f"trial {trial.number}", trial)

    def _replay(self, key: Any, trial: FrozenTrial) -> None:
        values = sorted(trial.intermediate_values.items())
        if values:  # Ray's rule expects at least one result
            self._results[key] = [{metric_keys.EPOCH: epoch, self._metric: value} for epoch, value in values]

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        running = self._search.running.get(trial.trial_id)
        if running and not running.repeat:
            self._replay(trial, self._search.trials()[running.number])

    def _on_insufficient_samples(self, tune_controller: Any, trial: TuneTrial, time: float) -> str:  # noqa: ARG002
        """Ray's own rule would pause the trial in favour of waiting ones."""
        return str(TrialScheduler.CONTINUE)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decide = super().on_trial_result
        return self._filter_decision(trial, result, lambda: decide(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._record_death(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Nothing: the last report has been judged already."""

    def _explain_stop(self, epoch: float, value: float) -> str:
        return f"Stopped by median at epoch {epoch:g} with {value:.6g}: the median of the others is better"

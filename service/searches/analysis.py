"""Analysis of a search's trials: states, values, times, the best trials, and statistics of repeats.

Pure functions of Optuna's trials, which are shared with other readers and must not be changed.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from service.jobs.schemas import TrialCounts
from service.searches.schemas import RepeatView, TrialState
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.spec.base import SpecError
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import pareto_front
from trainer.spec.space import BaseSpec, Point

STATES: Final = {
    StudyState.WAITING: TrialState.WAITING,
    StudyState.RUNNING: TrialState.RUNNING,
    StudyState.COMPLETE: TrialState.COMPLETE,
    StudyState.PRUNED: TrialState.PRUNED,
    StudyState.FAIL: TrialState.FAILED,
}
"""The API's name of each of Optuna's states."""

FIXED_PARAMS: Final = "fixed_params"
"""Optuna's attribute with the values that a request chose for a trial."""

T_QUANTILES: Final = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, 3 … degrees of freedom; the normal distribution's is used beyond."""
NORMAL_QUANTILE: Final = 1.9600


def state_of(trial: FrozenTrial) -> TrialState:
    return STATES[trial.state]


def colour(number: int) -> str:
    """The colour of a trial, the same in every figure."""
    return f"hsl({number * 137.508 % 360:.0f},65%,50%)"  # the golden angle: neighbours differ most


def repeat_of(trial: FrozenTrial) -> int | None:
    """The number of the trial that it repeats; None where it is not a repeat."""
    number: int | None = trial.user_attrs.get(names.TRIAL_REPEAT_OF)
    return number


def is_own_result(trial: FrozenTrial) -> bool:
    """Whether its values are a result of their own: neither those of a repeat, nor taken from another trial."""
    return names.WITHOUT_OWN_RESULT.isdisjoint(trial.user_attrs)


def point_of(trial: FrozenTrial, spec: SearchSpec) -> Point:
    """A trial's values by path; of a waiting trial those that a request chose."""
    return spec.point(trial.system_attrs.get(FIXED_PARAMS, {}) if trial.state is StudyState.WAITING else trial.params)


def is_fully_known(trial: FrozenTrial, spec: SearchSpec) -> bool:
    """Whether all values of a trial are known: the algorithm chooses the others when the trial starts."""
    return spec.is_complete(point_of(trial, spec))


def spec_of(trial: FrozenTrial, spec: SearchSpec) -> BaseSpec | None:
    """The spec that a trial runs; None where its values are not all known, or invalid."""
    if not is_fully_known(trial, spec):
        return None
    try:
        return spec.at(point_of(trial, spec), trial.user_attrs.get(names.TRIAL_SEED))
    except SpecError:
        return None


def values_of(trial: FrozenTrial, spec: SearchSpec) -> list[float] | None:
    """The objectives at the last evaluation; None before the first one, and where a value is not finite."""
    metrics: Mapping[str, float] = trial.user_attrs.get(names.TRIAL_METRICS, {})
    if trial.state is StudyState.COMPLETE:
        found = list(trial.values)
    elif len(spec.objectives) == 1:
        steps = trial.intermediate_values
        found = [steps[max(steps)]] if steps else []
    else:  # Optuna stores no intermediate values of several objectives
        found = [metrics[each.metric] for each in spec.objectives if each.metric in metrics]
    return found if len(found) == len(spec.objectives) and all(map(math.isfinite, found)) else None


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """The finite metrics of the last evaluation."""
    found = trial.user_attrs.get(names.TRIAL_METRICS, {})
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def started(trial: FrozenTrial) -> datetime | None:
    """When it started. Optuna writes local time without a zone: the nodes' zone has to be the service's."""
    return trial.datetime_start.astimezone(UTC) if trial.datetime_start else None


def ended(trial: FrozenTrial) -> datetime | None:
    return trial.datetime_complete.astimezone(UTC) if trial.datetime_complete else None


def duration(trial: FrozenTrial, moment: datetime) -> float | None:
    """Seconds from its start to its end, or to ``moment``; None before it started."""
    start = started(trial)
    return max(0.0, ((ended(trial) or moment) - start).total_seconds()) if start else None


def beyond_budget(trial: FrozenTrial) -> bool:
    """Whether it does not count towards the budget: a repeat, a retry, or a copy."""
    return not names.BEYOND_BUDGET.isdisjoint(trial.user_attrs)


def infeasible(trial: FrozenTrial) -> bool:
    """Whether its values are invalid."""
    return trial.user_attrs.get(names.TRIAL_REASON) == Reason.INFEASIBLE


def counts(trials: Iterable[FrozenTrial]) -> TrialCounts:
    """The number of trials by state, including repeats."""
    return TrialCounts(**Counter(state_of(trial).value for trial in trials))


def counted(trials: Iterable[FrozenTrial]) -> int:
    """The number of trials that count towards the budget, including waiting ones."""
    return sum(not beyond_budget(trial) for trial in trials)


def costs(trial: FrozenTrial, spec: SearchSpec) -> list[float] | None:
    """Its values with signs such that less is better; None where it has none."""
    values = values_of(trial, spec)
    if values is None:
        return None
    return [-value if each.mode == "max" else value for each, value in zip(spec.objectives, values, strict=True)]


def best(trials: Iterable[FrozenTrial], spec: SearchSpec) -> list[FrozenTrial]:
    """With one objective, the best complete or pruned trial; with several, the Pareto front of the complete trials,
    sorted by the first objective.

    Repeats and copies are excluded. Empty before there is a value. The earliest of equally good trials wins.
    """
    several = len(spec.objectives) > 1
    states = {StudyState.COMPLETE} if several else {StudyState.COMPLETE, StudyState.PRUNED}
    candidates = {
        trial.number: (cost, trial)
        for trial in trials
        if trial.state in states and is_own_result(trial) and (cost := costs(trial, spec)) is not None
    }
    if several:
        front = pareto_front({number: cost for number, (cost, _) in candidates.items()})
        return [candidates[number][1] for number in front]
    return [min(candidates.values(), key=lambda each: (each[0], each[1].number))[1]] if candidates else []


def leader(trials: Iterable[FrozenTrial], spec: SearchSpec) -> FrozenTrial | None:
    """The best trial; with several objectives, by the first."""
    return next(iter(best(trials, spec)), None)


def eta(trials: Sequence[FrozenTrial], spec: SearchSpec, seconds: float, draining: bool) -> float | None:
    """Seconds to the end of the budget, at the average pace of the ``seconds`` so far; None before a trial has ended.

    For a ``draining`` search, seconds to the end of its running trials.
    """
    done = sum(trial.state.is_finished() for trial in trials)
    if not done or seconds <= 0:
        return None
    running = sum(trial.state is StudyState.RUNNING for trial in trials)
    counted_done = counted(trial for trial in trials if trial.state.is_finished())
    remaining = running if draining else max(running, spec.trials - counted_done)
    return remaining * seconds / done


def repeated(trials: Sequence[FrozenTrial], spec: SearchSpec) -> dict[int, list[float]]:
    """The first objective of each repeated trial and of its finished repeats, by the trial's number."""
    repeat_values: dict[int, list[float]] = {}
    for trial in trials:
        original, values = repeat_of(trial), values_of(trial, spec)
        if original is not None and values and trial.state is StudyState.COMPLETE:
            repeat_values.setdefault(original, []).append(values[0])
    own = {trial.number: values_of(trial, spec) or [] for trial in trials if trial.number in repeat_values}
    return {number: values[:1] + repeat_values[number] for number, values in own.items()}


def repeats(trials: Sequence[FrozenTrial], spec: SearchSpec) -> list[RepeatView]:
    """The repeated trials, sorted by their mean of the first objective, best first."""
    values_by_number = repeated(trials, spec)
    views = []
    for trial in trials:
        values = values_by_number.get(trial.number)
        if values:
            low, high = interval(values)
            params, mean = point_of(trial, spec), statistics.fmean(values)
            views.append(RepeatView(number=trial.number, params=params, values=values, mean=mean, low=low, high=high))
    sign = -1.0 if spec.objectives[0].mode == "max" else 1.0
    return sorted(views, key=lambda each: (sign * each.mean, each.number))


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """The 95 % confidence interval of the mean; (None, None) for fewer than two values."""
    if len(values) < 2:
        return None, None
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    mean, half = statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half

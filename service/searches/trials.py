"""What a search's trials come to: their states, values and times, the best of them, and what their repeats say.

Pure, over Optuna's trials, which others read too: nothing here changes them.
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
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec
from trainer.spec.space import Point

STATES: Final = {
    StudyState.WAITING: TrialState.WAITING,
    StudyState.RUNNING: TrialState.RUNNING,
    StudyState.COMPLETE: TrialState.COMPLETE,
    StudyState.PRUNED: TrialState.PRUNED,
    StudyState.FAIL: TrialState.FAILED,
}
"""What the API calls the states that Optuna has."""

CHOSEN: Final = "fixed_params"
"""Optuna's own attribute of a trial whose values somebody has chosen."""

T_QUANTILES: Final = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, 3 … degrees of freedom; beyond them it is the normal distribution's."""
NORMAL_QUANTILE: Final = 1.9600


def state_of(trial: FrozenTrial) -> TrialState:
    return STATES[trial.state]


def colour(number: int) -> str:
    """A trial's own, in whatever figure it is."""
    return f"hsl({number * 137.508 % 360:.0f},65%,50%)"  # the golden angle: neighbours differ most


def repeat_of(trial: FrozenTrial) -> int | None:
    """The trial that it is a repeat of; None for others."""
    number: int | None = trial.user_attrs.get(names.TRIAL_REPEAT_OF)
    return number


def is_repeat(trial: FrozenTrial) -> bool:
    return repeat_of(trial) is not None


def point_of(trial: FrozenTrial, spec: SearchSpec) -> Point:
    """Its values by path; of one that waits those that somebody has chosen."""
    return spec.point(trial.system_attrs.get(CHOSEN, {}) if trial.state is StudyState.WAITING else trial.params)


def settled(trial: FrozenTrial, spec: SearchSpec) -> bool:
    """Whether all its values are known: the algorithm chooses what nobody has, when the trial begins."""
    point = point_of(trial, spec)
    return all(path in point for path in spec.space if spec.applies(path, point))


def spec_of(trial: FrozenTrial, spec: SearchSpec) -> PretrainSpec | None:
    """What it trains, by the search's ``spec``; None where its values are not all known, or are no spec."""
    if not settled(trial, spec):
        return None
    try:
        return spec.at(point_of(trial, spec), trial.user_attrs.get(names.TRIAL_SEED))
    except SpecError:
        return None


def values_of(trial: FrozenTrial, spec: SearchSpec) -> list[float] | None:
    """One for each objective, of its last evaluation; None where there was none, or one of them is not finite."""
    metrics: Mapping[str, float] = trial.user_attrs.get(names.TRIAL_METRICS, {})
    if trial.state is StudyState.COMPLETE:
        found = list(trial.values)
    elif len(spec.objectives) == 1:
        steps = trial.intermediate_values
        found = [steps[max(steps)]] if steps else []
    else:  # Optuna keeps no values of several objectives on the way
        found = [metrics[each.metric] for each in spec.objectives if each.metric in metrics]
    return found if len(found) == len(spec.objectives) and all(map(math.isfinite, found)) else None


def metrics_of(trial: FrozenTrial) -> dict[str, float]:
    """All that its last evaluation measured; finite values alone."""
    found = trial.user_attrs.get(names.TRIAL_METRICS, {})
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def started(trial: FrozenTrial) -> datetime | None:
    """When it began. Optuna writes the local time of the node without its zone, which has to be ours."""
    return trial.datetime_start.astimezone(UTC) if trial.datetime_start else None


def ended(trial: FrozenTrial) -> datetime | None:
    return trial.datetime_complete.astimezone(UTC) if trial.datetime_complete else None


def duration(trial: FrozenTrial, moment: datetime) -> float | None:
    """Seconds until its end, or until ``moment``; None before it began."""
    begin = started(trial)
    return max(0.0, ((ended(trial) or moment) - begin).total_seconds()) if begin else None


def beyond_budget(trial: FrozenTrial) -> bool:
    """Whether no budget counts it: a repeat, or a failed trial's values once more."""
    return not names.BEYOND_BUDGET.isdisjoint(trial.user_attrs)


def infeasible(trial: FrozenTrial) -> bool:
    """Whether its values are no spec."""
    return trial.user_attrs.get(names.TRIAL_REASON) == Reason.INFEASIBLE


def counts(trials: Iterable[FrozenTrial]) -> TrialCounts:
    """How many there are by state, repeats among them."""
    found = Counter(state_of(trial).value for trial in trials)
    return TrialCounts(**found)


def counted(trials: Iterable[FrozenTrial]) -> int:
    """How many of the budget's trials have been made, waiting ones among them."""
    return sum(not beyond_budget(trial) for trial in trials)


def costs(trial: FrozenTrial, spec: SearchSpec) -> list[float] | None:
    """Its values, such that less is better in each; None where it has none."""
    values = values_of(trial, spec)
    if values is None:
        return None
    return [-value if each.mode == "max" else value for each, value in zip(spec.objectives, values, strict=True)]


def best(trials: Iterable[FrozenTrial], spec: SearchSpec) -> list[FrozenTrial]:
    """Of one objective the best trial that is complete or pruned; of several, all complete ones that none beats, the
    best of the first objective first.

    Repeats are not among them. Empty where there is no value yet; of equal ones of one objective it is the earliest.
    """
    several = len(spec.objectives) > 1
    states = {StudyState.COMPLETE} if several else {StudyState.COMPLETE, StudyState.PRUNED}
    found = [
        (cost, trial.number, trial)
        for trial in trials
        if trial.state in states and not is_repeat(trial) and (cost := costs(trial, spec)) is not None
    ]
    if not several:
        return [min(found, key=lambda each: each[:2])[2]] if found else []
    front: list[tuple[list[float], FrozenTrial]] = []
    for cost, _, trial in sorted(found, key=lambda each: each[:2]):  # what comes later beats nothing before it
        if not any(_beats(other, cost) for other, _ in front):
            front.append((cost, trial))
    return [trial for _, trial in front]


def leader(trials: Iterable[FrozenTrial], spec: SearchSpec) -> FrozenTrial | None:
    """The best trial; of several objectives the best one of the first."""
    return next(iter(best(trials, spec)), None)


def _beats(cost: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is nowhere worse and not the same."""
    return cost != other and all(one <= two for one, two in zip(cost, other, strict=True))


def eta(trials: Sequence[FrozenTrial], spec: SearchSpec, seconds: float, draining: bool) -> float | None:
    """Seconds to the end of the budget at the pace of the ``seconds`` so far; None before a trial has ended.

    Of a search that is ``draining``, to the end of the trials that run.
    """
    done = sum(trial.state.is_finished() for trial in trials)
    if not done or seconds <= 0:
        return None
    running = sum(trial.state is StudyState.RUNNING for trial in trials)
    counted_done = counted(trial for trial in trials if trial.state.is_finished())
    left = running if draining else max(running, spec.trials - counted_done)
    return left * seconds / done


def repeated(trials: Sequence[FrozenTrial], spec: SearchSpec) -> dict[int, list[float]]:
    """The first objective's value of each trial that was repeated, and of its finished repeats, by its number."""
    again: dict[int, list[float]] = {}
    for trial in trials:
        of, values = repeat_of(trial), values_of(trial, spec)
        if of is not None and values and trial.state is StudyState.COMPLETE:
            again.setdefault(of, []).append(values[0])
    own = {trial.number: values_of(trial, spec) or [] for trial in trials if trial.number in again}
    return {number: values[:1] + again[number] for number, values in own.items()}


def repeats(trials: Sequence[FrozenTrial], spec: SearchSpec) -> list[RepeatView]:
    """The trials that were repeated, the best mean of the first objective first."""
    found = repeated(trials, spec)
    views = []
    for trial in trials:
        values = found.get(trial.number)
        if values:
            low, high = interval(values)
            params, mean = point_of(trial, spec), statistics.fmean(values)
            views.append(RepeatView(number=trial.number, params=params, values=values, mean=mean, low=low, high=high))
    sign = -1.0 if spec.objectives[0].mode == "max" else 1.0
    return sorted(views, key=lambda each: (sign * each.mean, each.number))


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Where the true mean lies with 95 % probability; nothing is known of fewer than two values."""
    if len(values) < 2:
        return None, None
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    mean, half = statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half

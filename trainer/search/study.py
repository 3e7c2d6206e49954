"""A search's Optuna study, and the algorithm that chooses values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from trainer.logger import logger
from trainer.search.trial_storage import STUDIES
from trainer.spec.search import SearchSpec
from trainer.spec.space import CategoricalParameter, FloatParameter, Parameter


class _WidenedStudy(Study):
    """The study as a warm-started sampler sees it: the trials of earlier searches, then its own, in one sequence of
    numbers. Trial ids are unchanged, so what the sampler stores goes to the right trial.
    """

    def __init__(self, study: Study, earlier: Sequence[FrozenTrial]) -> None:
        self.__dict__.update(study.__dict__)  # the constructor would query the database
        self._earlier = earlier

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        own = super()._get_trials(deepcopy, states, use_cache)
        earlier = [trial for trial in self._earlier if states is None or trial.state in states]
        return earlier + [self.renumbered(trial) for trial in own]

    def renumbered(self, trial: FrozenTrial) -> FrozenTrial:
        """A copy of one of the study's own trials, numbered after the earlier ones."""
        return _with_number(trial, trial.number + len(self._earlier))


def _with_number(trial: FrozenTrial, number: int) -> FrozenTrial:
    renumbered = copy.copy(trial)
    renumbered.number = number
    return renumbered


class _WarmStartedSampler(BaseSampler):
    """A sampler that also learns from the trials of earlier searches. Only the sampler sees them: the search itself
    counts, ranks and sweeps its own trials.
    """

    def __init__(self, sampler: BaseSampler, earlier: Sequence[FrozenTrial]) -> None:
        self._sampler = sampler
        self._earlier = [_with_number(trial, number) for number, trial in enumerate(earlier)]

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        widened = _WidenedStudy(study, self._earlier)
        return self._sampler.infer_relative_search_space(widened, widened.renumbered(trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        widened = _WidenedStudy(study, self._earlier)
        return self._sampler.sample_relative(widened, widened.renumbered(trial), search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        widened = _WidenedStudy(study, self._earlier)
        return self._sampler.sample_independent(widened, widened.renumbered(trial), param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        widened = _WidenedStudy(study, self._earlier)
        self._sampler.before_trial(widened, widened.renumbered(trial))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        widened = _WidenedStudy(study, self._earlier)
        self._sampler.after_trial(widened, widened.renumbered(trial), state, values)


def open_study(spec: SearchSpec, name: str, storage: RDBStorage) -> Study:
    """The search's study, with its algorithm; created if there is none. Raises `StorageError`."""
    directions = [
        StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE for objective in spec.objectives
    ]

    def open_or_create() -> tuple[Study, list[FrozenTrial]]:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        return study, _earlier_trials(spec, storage)

    study, earlier = STUDIES.call("open the study", open_or_create)
    existing = len(STUDIES.call("read the trials", lambda: study.get_trials(deepcopy=False)))
    study.sampler = make_sampler(spec, existing, earlier)
    return study


def _earlier_trials(spec: SearchSpec, storage: RDBStorage) -> list[FrozenTrial]:
    """Evaluated trials of earlier searches, from which the algorithm learns: those whose values this search could
    choose too. Deleted searches are skipped.
    """
    space = {path: distribution(parameter) for path, parameter in spec.space.items()}
    trials: list[FrozenTrial] = []
    for name in spec.warm_start:
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            logger.warning("warm_start: the search %s no longer exists; nothing is learned from it", name)
            continue
        evaluated = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        usable = [moved for trial in evaluated if (moved := _moved_to(space, trial))]
        logger.info("warm_start: learns from %d of the %d trials of %s", len(usable), len(evaluated), name)
        trials += usable
    return trials


def distribution(parameter: Parameter) -> BaseDistribution:
    """What Optuna records of a parameter."""
    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution([parameter.stored(each) for each in parameter.choices])
    if isinstance(parameter, FloatParameter):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _moved_to(space: Mapping[str, BaseDistribution], trial: FrozenTrial) -> FrozenTrial | None:
    """A copy of an earlier search's trial in another space; None where a value lies outside of it.

    Samplers learn only from trials of the same ranges (GP), or raise an error for a choice that is gone (TPE).
    """
    for path, value in trial.params.items():
        if path not in space or not contains(space[path], value):
            return None
    moved = copy.copy(trial)
    moved.distributions = {path: space[path] for path in trial.params}
    return moved


def contains(values: BaseDistribution, value: Any) -> bool:
    """Whether a parameter may have a value."""
    try:
        internal = values.to_internal_repr(value)
    except ValueError:  # no choice of a categorical distribution
        return False
    return values._contains(internal)  # noqa: SLF001 - Optuna has no public name for it


def make_sampler(spec: SearchSpec, existing: int, earlier: Sequence[FrozenTrial]) -> BaseSampler:
    """The algorithm. ``existing`` is the number of trials that the search already has: with those of earlier searches
    it moves the seed on, so that the algorithm does not draw the same values again.
    """
    seed = (spec.algorithm.seed + existing + len(earlier)) % 2**32
    match spec.algorithm.name:
        case "tpe":
            return _warm_started(TPESampler(seed=seed, constant_liar=True), earlier)
        case "random" | "grid":  # a grid is a finite space, in which no point is drawn twice
            return RandomSampler(seed=seed)
        case "qmc":  # it counts its points in the study itself
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # since version 3
            return QMCSampler(seed=spec.algorithm.seed, scramble=True, warn_independent_sampling=False)
        case "cmaes":  # it restores its state from the trials of its study, and must not find that of another search
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `source_trials`, since version 2
            complete = [trial for trial in earlier if trial.state is TrialState.COMPLETE]
            return CmaEsSampler(seed=seed, source_trials=complete or None, warn_independent_sampling=False)
        case "gp":
            return _warm_started(GPSampler(seed=seed), earlier)


def _warm_started(sampler: BaseSampler, earlier: Sequence[FrozenTrial]) -> BaseSampler:
    return _WarmStartedSampler(sampler, earlier) if earlier else sampler

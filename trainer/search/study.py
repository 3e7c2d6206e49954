"""A search's Optuna study: the algorithm that chooses values, and the record of every trial."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.patience import Dependency
from trainer.protocol import names
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import ObjectiveSpec
from trainer.spec.space import CategoricalParameter, FloatParameter, Parameter, Point

BUSY_SECONDS: Final = 20
"""How long SQLite waits for another process's write."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def _describe(error: Exception) -> str:
    """The database's own message, without SQL and without the database's URL."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


STUDIES: Final = Dependency(
    "the studies' database", (SQLAlchemyError, optuna.exceptions.StorageInternalError), describe=_describe
)


def connect() -> RDBStorage:
    """The studies' database, whose URL this node's environment names; raises `StorageError`."""
    url = os.environ.get(names.STUDY_VARIABLE)
    if not url:
        raise StorageError(
            f"{names.STUDY_VARIABLE} is not set on this node: set it to the URL of the database for searches' trials"
        )
    local = url.startswith("sqlite")
    arguments: dict[str, Any] = {"timeout": BUSY_SECONDS} if local else {"connect_timeout": 5}
    settings: dict[str, Any] = {"connect_args": arguments, "hide_parameters": True} | (
        {} if local else {"pool_pre_ping": True}
    )
    storage = STUDIES.call("open the connection", lambda: RDBStorage(url, engine_kwargs=settings))
    if local:
        event.listen(storage.engine, "connect", _write_ahead)
    return storage


def _write_ahead(connection: Any, record: object) -> None:  # noqa: ARG001 - the signature of a listener
    """Let readers and the one writer work without waiting for each other."""
    connection.execute("PRAGMA journal_mode=WAL")


class _Grid(GridSampler):
    """Tries each combination once, even if users add points or retry failed ones.

    Optuna's own sampler chooses by the trial's number, and would skip a combination for each added point.
    """

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        fixed = trial.system_attrs.get("fixed_params", {})
        unvisited = set(self._get_unvisited_grid_ids(study))
        matches = (grid_id for grid_id in range(len(self._all_grids)) if self._matches(grid_id, fixed))
        grid_id = min(matches, key=lambda each: (each not in unvisited, each))
        study._storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)  # noqa: SLF001
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", grid_id)  # noqa: SLF001 - as Optuna's own does

    def _matches(self, grid_id: int, fixed: Mapping[str, Any]) -> bool:
        point = dict(zip(self._param_names, self._all_grids[grid_id], strict=True))
        return all(_equal(point[path], value) for path, value in fixed.items())

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing: Optuna's own would stop `Study.optimize`, which is not used here."""


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of a parameter are equal, up to the rounding of added steps."""
    return math.isclose(one, other, rel_tol=1e-9) if isinstance(one, float) else bool(one == other)


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
    """What Optuna records of a parameter that `ask` suggests."""
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
        if path not in space or not _contains(space[path], value):
            return None
    moved = copy.copy(trial)
    moved.distributions = {path: space[path] for path in trial.params}
    return moved


def _contains(values: BaseDistribution, value: Any) -> bool:
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
        case "random":
            return RandomSampler(seed=seed)
        case "grid":
            grid = {
                path: [spec.stored({path: value})[path] for value in parameter.values() or ()]
                for path, parameter in spec.space.items()
            }
            return _Grid(grid, seed=spec.algorithm.seed)
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


def ask(study: Study, spec: SearchSpec) -> tuple[Trial, Point]:
    """A new trial, or one that was enqueued, and its values."""
    trial = study.ask()
    point: Point = {}
    for path, parameter in spec.ordered():
        if not spec.applies(path, point):
            continue
        value: Any
        if isinstance(parameter, CategoricalParameter):
            value = parameter.read(
                trial.suggest_categorical(path, [parameter.stored(each) for each in parameter.choices])
            )
        elif isinstance(parameter, FloatParameter):
            value = trial.suggest_float(path, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
        else:
            value = trial.suggest_int(path, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
        point[path] = value
    return trial, point


def tell(study: Study, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
    """Record a trial's end, unless it has one already. Raises `StorageError`."""
    final_values = list(values) if values is not None else None
    STUDIES.call(
        f"record the end of trial {number}",
        lambda: study.tell(number, final_values, state=state, skip_if_finished=True),
    )


def ranked(trials: Sequence[FrozenTrial], objective: ObjectiveSpec) -> list[FrozenTrial]:
    """Ended trials that have a value, the best first, without repeats."""
    sign = -1 if objective.mode == "max" else 1
    rated = [(sign * value, trial.number, trial) for trial in trials if (value := first_value(trial)) is not None]
    return [trial for _, _, trial in sorted(rated, key=lambda each: each[:2])]


def first_value(trial: FrozenTrial) -> float | None:
    """An ended trial's value of the first objective; None for a repeat, a failed trial or one without evaluations."""
    if names.TRIAL_REPEAT_OF in trial.user_attrs:
        return None
    if trial.state is TrialState.COMPLETE:
        value: float = trial.values[0]
    elif trial.state is TrialState.PRUNED and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    else:
        return None
    return value if math.isfinite(value) else None

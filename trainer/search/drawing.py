"""The points of new trials. In a finite space no point is drawn twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final

from optuna.trial import FrozenTrial, TrialState

from trainer.protocol import names
from trainer.search.record import SearchRecord
from trainer.search.study import contains, distribution
from trainer.spec.search import SearchSpec
from trainer.spec.space import CategoricalParameter, Point

DRAWS: Final = 5
"""How often the algorithm draws before a point that has not been tried is chosen at random: it may insist on one."""
RANDOM_DRAWS: Final = 64
"""Random points that are tried before the points of the space are gone through in order."""


class Drawing:
    """Chooses the points of new trials with the search's algorithm, and knows which have been tried."""

    def __init__(self, record: SearchRecord, spec: SearchSpec, trials: Sequence[FrozenTrial]) -> None:
        """``trials`` are those that have begun."""
        self._study, self._spec = record.study, spec
        self._size = spec.size
        self._tried: dict[Hashable, int] = {}
        """The newest trial of each point of a finite space, of those that have results of their own."""
        self._rest: Iterator[Point] = spec.points()
        self._random = Random(spec.algorithm.seed + len(trials))  # noqa: S311 - not for cryptography
        for trial in trials:
            point = spec.point(trial.params)
            begun = trial.state is not TrialState.RUNNING or names.TRIAL_ATTEMPTS in trial.user_attrs
            if begun and spec.is_complete(point):
                self.record(point, trial)

    @property
    def exhausted(self) -> bool:
        """Whether all points of the space have been tried."""
        return self._size is not None and len(self._tried) >= self._size

    def record(self, point: Point, trial: FrozenTrial) -> None:
        """Remember that a trial tries a point; a repeat does so with another seed, and does not count."""
        if self._size is not None and names.WITHOUT_OWN_RESULT.isdisjoint(trial.user_attrs):
            self._tried[self._spec.key(point)] = trial.number

    def tried_by(self, point: Point) -> int | None:
        """The trial that has tried a point of a finite space; None if none has, and in an infinite space."""
        return self._tried.get(self._spec.key(point)) if self._size is not None else None

    def point(self, trial: FrozenTrial) -> Point:
        """The point of a trial that has begun: with the values that a request chose, or that it has already.

        It has not been tried, unless those values leave no other.
        """
        fixed = self._spec.point(trial.system_attrs.get("fixed_params", {}) | trial.params)
        # Samplers read the trials once for each trial, like `Study.ask`, which would also create one.
        self._study._thread_local.cached_all_trials = None  # noqa: SLF001
        self._study.sampler.before_trial(self._study, trial)
        point = self._drawn(trial, fixed)
        for _ in range(DRAWS - 1):
            if self.tried_by(point) is None or point.keys() <= fixed.keys():
                return point
            point = self._drawn(trial, fixed)
        return point if self.tried_by(point) is None else self._untried(fixed) or point

    def _drawn(self, trial: FrozenTrial, fixed: Mapping[str, Any]) -> Point:
        """A point as Optuna's `Trial` would choose it, of which nothing is stored."""
        study, sampler = self._study, self._study.sampler
        point, relative = Point(), None
        for path, parameter in self._spec.ordered():
            if not self._spec.applies(path, point):
                continue
            if path in fixed:
                point[path] = fixed[path]
                continue
            if parameter.size() == 1:
                point[path] = parameter.at(0)
                continue
            if relative is None:
                relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
            kind = distribution(parameter)
            if path in relative and contains(kind, relative[path]):
                value = relative[path]
            else:
                value = sampler.sample_independent(study, trial, path, kind)
            point[path] = parameter.read(value) if isinstance(parameter, CategoricalParameter) else value
        return point

    def _untried(self, fixed: Mapping[str, Any]) -> Point | None:
        """A point that has not been tried; None if there is none with the fixed values."""
        for _ in range(RANDOM_DRAWS):
            point = self._spec.draw(self._random, fixed)
            if self.tried_by(point) is None:
                return point
        rest = self._spec.points(fixed) if fixed else self._rest
        return next((point for point in rest if self.tried_by(point) is None), None)

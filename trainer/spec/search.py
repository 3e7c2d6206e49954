"""The spec of a hyperparameter search: a pretraining spec, which fields vary, and the objective."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from random import Random
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from trainer.spec import metric_keys
from trainer.spec.base import (
    AsWritten,
    Document,
    Problem,
    SpecError,
    refuse,
    set_value,
)
from trainer.spec.cluster import ClusterShape
from trainer.spec.common import Kept, Labels, Priority, RetrySpec
from trainer.spec.dataset import DatasetSpec
from trainer.spec.evaluation import PROBE_OF
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.resources import ResourcesSpec
from trainer.spec.search_sections import (
    INCOMPARABLE,
    AlgorithmSpec,
    BudgetSpec,
    Objectives,
    ObjectiveSpec,
    PromoteSpec,
    RepeatsSpec,
    SchedulerSpec,
)
from trainer.spec.space import CategoricalParameter, Parameter, Point, Scalar, check_path, check_values, misfit

TRIES: Final = 64
"""Random points that are tried to find out whether the space has a valid one."""


class SearchSpec(Document):
    """One hyperparameter search. Every field but `kind`, `base` and `space` has a default."""

    kind: Literal["search"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the base's."""
    base: Annotated[dict[str, Any], AsWritten(PretrainSpec, {"kind": "pretrain"})]
    """The pretraining spec that every trial starts from, as it would be submitted alone. Trials register nothing,
    and no evaluation follows them: `register_as` and `evaluation.after` apply to a job that a trial is promoted to."""
    space: dict[str, Parameter] = Field(min_length=1, max_length=50)
    """The parameters that vary, by their dotted path in the base, such as `optimization.base_lr`."""
    objective: Objectives = Field(default_factory=lambda: ObjectiveSpec.model_validate({}))
    """The objective, or a list of two or three: the best trials are then those that no other trial beats in all."""
    algorithm: AlgorithmSpec = Field(default_factory=AlgorithmSpec)
    scheduler: SchedulerSpec = Field(default_factory=SchedulerSpec)
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    keep: Kept = 3
    """How many of the best trials keep their checkpoints after they have ended; with several objectives, all trials do
    that no other trial beats in every objective."""
    repeats: RepeatsSpec = Field(default_factory=RepeatsSpec)
    promote: PromoteSpec | None = None
    """How the best trial becomes a pretraining job when the search ends; null: it does not, unless a user promotes
    it."""
    warm_start: tuple[str, ...] = Field((), max_length=20, examples=[["job-e2k4y0h5c7m9xq"]])
    """Earlier searches over the same fields and for the same objective: the algorithm learns from those of their trials
    whose values lie in this search's space."""
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    # -- What follows from it

    @property
    def base_spec(self) -> PretrainSpec:
        """The base with its defaults."""
        return PretrainSpec.parse({"kind": "pretrain"} | self.base)

    @property
    def dataset_used(self) -> DatasetSpec:
        """The dataset whose images are read."""
        return self.base_spec.dataset

    @property
    def worker_resources(self) -> ResourcesSpec:
        """The resources of one trial's workers."""
        return self.base_spec.resources

    @property
    def concurrent_runs(self) -> int:
        """Trials at a time."""
        return self.budget.concurrency

    def resolved_sections(self, cluster: ClusterShape) -> dict[str, Any]:
        """The sections in which `trainer.spec.plan.resolve` fills in `auto` values: the resources of a trial, which has
        one worker unless the base says otherwise, and as many trials at a time as fit.

        Trials fill in the rest, when their own values are known.
        """
        resources = self.base_spec.resources
        workers = 1 if resources.workers == "auto" else resources.workers
        gpus = resources.gpus_per_worker if resources.gpus_per_worker != "auto" else int(cluster.gpus > 0)
        cpus = resources.cpus_per_worker
        if cpus == "auto":
            trials = max(1, min(self.budget.concurrency, cluster.holds(1, gpus) // workers))
            cpus = cluster.cpus_for(workers * trials, gpus)
        most_trials = max(1, cluster.holds(cpus, gpus) // workers)
        document = self.model_dump(mode="json")
        base = document["base"]
        sizes = {"workers": workers, "gpus_per_worker": gpus, "cpus_per_worker": cpus}
        return {
            "base": base | {"resources": (base.get("resources") or {}) | sizes},
            "budget": document["budget"] | {"concurrency": min(self.budget.concurrency, most_trials)},
        }

    @property
    def objectives(self) -> tuple[ObjectiveSpec, ...]:
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    @property
    def epochs(self) -> int:
        """The most epochs that a trial may have."""
        searched = self.space.get("optimization.epochs")
        if isinstance(searched, CategoricalParameter):
            return max(choice for choice in searched.choices if isinstance(choice, int))
        return int(searched.high) if searched else self.base_spec.optimization.epochs

    @property
    def grace_epochs(self) -> int:
        """Epochs before which no trial is stopped."""
        auto = self.scheduler.grace_epochs == "auto"
        return self.base_spec.evaluation.every_epochs if auto else int(self.scheduler.grace_epochs)

    @property
    def size(self) -> int | None:
        """The number of points of the space, each with only the parameters that apply there; None if it is infinite."""
        counts = Counter({frozenset[str](): 1})
        """The points of the parameters counted so far, by the later ones that do not apply to them."""
        for path, parameter in self.ordered():
            values = parameter.size()
            if values is None:
                return None
            following = Counter[frozenset[str]]()
            for excluded, count in counts.items():
                if path in excluded:
                    following[(excluded - {path}) | self._conditional_on(path)] += count
                    continue
                for more, matching in self._exclusions(path, parameter, values).items():
                    following[excluded | more] += count * matching
            counts = following
        return counts.total()

    def _conditional_on(self, path: str) -> frozenset[str]:
        """The parameters that have a condition on this one."""
        return frozenset(other for other, parameter in self.space.items() if path in (parameter.when or {}))

    def _exclusions(self, path: str, parameter: Parameter, values: int) -> Counter[frozenset[str]]:
        """How many of a parameter's values exclude which parameters that have a condition on it."""
        allowed = {
            other: {parameter.index(value) for value in (self.space[other].when or {})[path]}
            for other in self._conditional_on(path)
        }
        named = set[int]().union(*allowed.values())
        exclusions = Counter({frozenset(allowed): values - len(named)})
        for index in named:
            exclusions[frozenset(other for other, indices in allowed.items() if index not in indices)] += 1
        return exclusions

    @property
    def trials(self) -> int:
        """Trials in total, without repeats; no more than the space has points, as none is trained twice."""
        size = self.size
        return self.budget.trials if size is None else min(self.budget.trials, size)

    def ordered(self) -> Iterator[tuple[str, Parameter]]:
        """The parameters, each after those that decide whether it applies, and as soon after them as possible."""
        remaining = dict(self.space)
        while remaining:  # there are no circular conditions: validation refuses them
            ready = [path for path, parameter in remaining.items() if remaining.keys().isdisjoint(parameter.when or ())]
            path = next((each for each in ready if remaining[each].when), ready[0])
            yield path, remaining.pop(path)

    def points(self, fixed: Mapping[str, Any] | None = None) -> Iterator[Point]:
        """All points of a finite space that have the ``fixed`` values where those apply, each once."""
        return self._extended({}, list(self.ordered()), fixed or {})

    def _extended(
        self, point: Point, parameters: Sequence[tuple[str, Parameter]], fixed: Mapping[str, Any]
    ) -> Iterator[Point]:
        """All points that begin with ``point`` and have values of ``parameters`` too."""
        if not parameters:
            yield point
            return
        (path, parameter), *others = parameters
        if not self.applies(path, point):
            yield from self._extended(point, others, fixed)
            return
        values = [fixed[path]] if path in fixed else map(parameter.at, range(parameter.size() or 0))
        for value in values:
            yield from self._extended(point | {path: value}, others, fixed)

    def key(self, point: Mapping[str, Any]) -> Hashable:
        """The identity of a point of a finite space: the same for points that differ only by rounding."""
        return tuple((path, parameter.index(point[path])) for path, parameter in self.space.items() if path in point)

    def at(self, point: Mapping[str, Any], seed: int | None = None) -> PretrainSpec:
        """The spec of a trial; raises `SpecError` if the combination of values is not a valid spec."""
        document = copy.deepcopy({"kind": "pretrain"} | self.base)
        for path, value in point.items():
            set_value(document, path, value)
        if seed is not None:
            document["seed"] = seed
        document.pop("register_as", None)
        if isinstance(document.get("evaluation"), dict):
            document["evaluation"].pop("after", None)
        return PretrainSpec.parse(document)

    def promoted(self, point: Mapping[str, Any], promote: PromoteSpec, resources: Mapping[str, Any]) -> dict[str, Any]:
        """The document that promotes a trial: the base as it was written, with the trial's values.

        ``resources`` are those of the base before it was resolved.
        """
        document = copy.deepcopy({"kind": "pretrain"} | self.base) | {"resources": dict(resources)}
        for path, value in itertools.chain(point.items(), promote.overrides.items()):
            set_value(document, path, value)
        if promote.register_as:
            document["register_as"] = promote.register_as
        return document

    # -- What is checked

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name") or not isinstance(data.get("base"), dict):
            return data
        base = data["base"]
        dataset = base.get("dataset")
        uri = dataset.get("uri") if isinstance(dataset, dict) else None
        name = base.get("name") or (uri.rstrip("/").rpartition("/")[2] if isinstance(uri, str) else "")
        return data | {"name": f"search-{name}"[:200]} if isinstance(name, str) and name else data

    @model_validator(mode="after")
    def _space_fits_base(self) -> Self:
        for path, parameter in self.space.items():
            check_path(path)
            check_values(path, parameter)
        for path, parameter in self.space.items():
            self._check_condition(path, parameter)
        self._check_has_valid_point()
        return self

    def _check_condition(self, path: str, parameter: Parameter) -> None:
        field = ("space", path, "when")
        for other, values in (parameter.when or {}).items():
            condition = self.space.get(other)
            if condition is None or other == path:
                raise refuse(field, f"{other!r} is not another parameter of this space: name one of its paths", other)
            if condition.size() is None:
                raise refuse(field, f"{other} has too many values for a condition: give it choices or a step", other)
            for value in values:
                if misfit(condition, value):
                    raise refuse(field, f"{other} is never {value!r}: use one of its values", value)
        visited, pending = set[str](), [path]
        while pending:
            for other in self.space[pending.pop()].when or ():
                if other == path:
                    raise refuse(field, "is circular: a condition must not depend on the parameter itself", other)
                if other not in visited:
                    visited.add(other)
                    pending.append(other)

    def applies(self, path: str, point: Mapping[str, Any]) -> bool:
        """Whether a parameter applies at a point, which must have the parameters of its condition."""
        conditions = self.space[path].when or {}
        return all(
            other in point and self.space[other].index(point[other]) in map(self.space[other].index, values)
            for other, values in conditions.items()
        )

    def is_complete(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has all parameters that apply to it."""
        return all(path in point for path in self.space if self.applies(path, point))

    def point(self, stored: Mapping[str, Any]) -> Point:
        """A trial's values, from those that the study has stored."""
        return {
            path: parameter.read(stored[path]) if isinstance(parameter, CategoricalParameter) else stored[path]
            for path, parameter in self.space.items()
            if path in stored
        }

    def stored(self, point: Mapping[str, Any]) -> dict[str, Scalar | None]:
        """A point's values as the study stores them."""
        return {
            path: parameter.stored(point[path]) if isinstance(parameter, CategoricalParameter) else point[path]
            for path, parameter in self.space.items()
            if path in point
        }

    def draw(self, random: Random, fixed: Mapping[str, Any] | None = None) -> Point:
        """A random point of the space with the ``fixed`` values where those apply; it may not be a valid spec."""
        point, given = Point(), fixed or {}
        for path, parameter in self.ordered():
            if self.applies(path, point):
                point[path] = given[path] if path in given else parameter.draw(random)
        return point

    def _check_has_valid_point(self) -> None:
        random, first_problem = Random(0), None  # noqa: S311 - not for cryptography
        for _ in range(TRIES):
            try:
                self.at(self.draw(random))
            except SpecError as error:
                first_problem = first_problem or error.problems[0]
            else:
                return
        raise refuse("space", f"{TRIES} random points were tried and none is a valid spec; the first: {first_problem}")

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        objectives, base = self.objectives, self.base_spec
        if not 1 <= len(objectives) <= 3:
            raise refuse("objective", "must be one objective, or a list of two or three", len(objectives))
        if len({each.metric for each in objectives}) < len(objectives):
            raise refuse("objective", "must not name a metric twice", [each.metric for each in objectives])
        for index, each in enumerate(objectives):
            field = "objective.metric" if isinstance(self.objective, ObjectiveSpec) else f"objective.{index}.metric"
            searched = [path for path in INCOMPARABLE.get(each.metric, ()) if path in self.space]
            if searched:
                text = (
                    f"cannot be compared between trials, because {searched[0]} is searched: "
                    f"use {metric_keys.LINEAR_TOP1}"
                )
                raise refuse(field, text, each.metric)
            probe, probes = PROBE_OF.get(each.metric), base.evaluation.probes
            if probe and probes != "auto" and probe not in probes:
                text = f"is not measured, because base.evaluation.probes is [{', '.join(probes)}]: add {probe} to it"
                raise refuse(field, text, each.metric)
        return self

    @model_validator(mode="after")
    def _scheduler_fits(self) -> Self:
        scheduler, every, epochs = self.scheduler, self.base_spec.evaluation.every_epochs, self.epochs
        if scheduler.name == "none":
            return self
        if len(self.objectives) > 1:
            text = "cannot compare trials by several objectives: use none"
            raise refuse("scheduler.name", text, scheduler.name)
        if every >= epochs:
            text = f"never has a result: trials have {epochs} epochs and are evaluated every {every}: lower "
            raise refuse("scheduler.name", f"{text}base.evaluation.every_epochs, or use none", scheduler.name)
        if self.grace_epochs % every:
            text = f"must be a multiple of base.evaluation.every_epochs {every}: trials have no results in between"
            raise refuse("scheduler.grace_epochs", text, scheduler.grace_epochs)
        if self.grace_epochs >= epochs:
            raise refuse("scheduler.grace_epochs", f"must be below a trial's {epochs} epochs", scheduler.grace_epochs)
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        for path, parameter in self.space.items():
            if self.algorithm.name == "grid" and parameter.size() is None:
                raise refuse(
                    f"space.{path}", "has too many values for a grid: give it choices or a step", parameter.type
                )
            if self.algorithm.name in {"grid", "cmaes"} and parameter.when:
                text = f"algorithm {self.algorithm.name} does not support conditions: use tpe or random"
                raise refuse(("space", path, "when"), text, None)
            if self.algorithm.name == "cmaes" and isinstance(parameter, CategoricalParameter):
                raise refuse(("space", path, "type"), "algorithm cmaes supports only numbers: use tpe", parameter.type)
        if self.warm_start and self.algorithm.name in {"random", "grid", "qmc"}:
            text = f"algorithm {self.algorithm.name} does not learn from trials: use tpe, gp or cmaes"
            raise refuse("warm_start", text, list(self.warm_start))
        if self.algorithm.name == "cmaes" and len(self.objectives) > 1:
            raise refuse("algorithm.name", "cmaes supports only one objective: use tpe", self.algorithm.name)
        return self


def parse_point(spec: SearchSpec, point: Mapping[str, Any]) -> Point:
    """A point that a user has chosen, complete or not; raises `SpecError` if it does not belong to the space.

    The algorithm chooses the values of missing parameters.
    """
    paths = ", ".join(spec.space)
    problems = [
        _problem(path, value, f"is not a parameter of this search: there are {paths}")
        for path, value in point.items()
        if path not in spec.space
    ]
    checked: Point = {}
    for path, parameter in spec.ordered():
        if path not in point:
            continue
        reason = misfit(parameter, point[path])
        if not spec.applies(path, checked):
            reason = "does not apply at this point, or the point lacks the parameters of its condition: leave it out"
        if reason:
            problems.append(_problem(path, point[path], reason))
        else:
            checked[path] = parameter.settled(point[path])
    if problems:
        raise SpecError(problems)
    return checked


def _problem(path: str, value: Any, message: str) -> Problem:
    return Problem(f"params.{path}", f"/params/{path}", value, message)

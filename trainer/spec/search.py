"""The spec of a hyperparameter search: a spec of pretraining or of an evaluation, which fields vary, the objective."""

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

from trainer.spec.base import (
    AsWritten,
    Document,
    Problem,
    SpecError,
    refuse,
)
from trainer.spec.cluster import ClusterShape
from trainer.spec.common import Kept, Labels, Priority, RetrySpec
from trainer.spec.dataset import DatasetSpec
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.resources import ResourcesSpec
from trainer.spec.search_checks import (
    NAMED_IN_BASE,
    check_algorithm,
    check_condition,
    check_evaluated,
    check_objectives,
    check_scheduler,
)
from trainer.spec.search_sections import (
    AlgorithmSpec,
    BudgetSpec,
    Objectives,
    ObjectiveSpec,
    PromoteSpec,
    RepeatsSpec,
    SchedulerSpec,
)
from trainer.spec.space import (
    BASES,
    BaseSpec,
    CategoricalParameter,
    Parameter,
    Point,
    Scalar,
    check_path,
    check_values,
    misfit,
    parse_base,
    set_in_base,
)

TRIES: Final = 64
"""Random points that are tried to find out whether the space has a valid one."""


class SearchSpec(Document):
    """One hyperparameter search. Every field but `kind`, `base` and `space` has a default."""

    kind: Literal["search"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the base's."""
    base: Annotated[dict[str, Any], AsWritten(BASES)]
    """The spec that every trial starts from, as it would be submitted alone: of kind `pretrain`, which need not be
    written, or `evaluate`. Trials register nothing, and no evaluation follows them: `register_as` and
    `evaluation.after` apply to a job that a trial is promoted to. Trials that are evaluations measure no `baselines`
    unless those are written here."""
    space: dict[str, Parameter] = Field(min_length=1, max_length=50)
    """The parameters that vary, by their dotted path in the base, such as `optimization.base_lr`. A protocol of an
    evaluation is named by its name: `protocols.finetune.base_lr`."""
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
    """How the best trial becomes a job when the search ends; null: it does not, unless a user promotes it."""
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
    def base_spec(self) -> BaseSpec:
        """The base with its defaults."""
        return parse_base(self.base)

    @property
    def reads_source(self) -> bool:
        """Whether trials read a version, or a checkpoint of another job, so that the request says where it is."""
        return self.base_spec.reads_source

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
        return int(searched.high) if searched else epochs_of(self.base_spec)

    @property
    def grace_epochs(self) -> int:
        """Epochs before which no trial is stopped."""
        grace, base = self.scheduler.grace_epochs, self.base_spec
        if grace != "auto":
            return grace
        return base.evaluation.every_epochs if isinstance(base, PretrainSpec) else epochs_of(base)

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

    @property
    def seeds_of_trial(self) -> int:
        """How many consecutive seeds a trial has, from its first: repeats have others."""
        base = self.base_spec
        return 1 if isinstance(base, PretrainSpec) else base.seeds

    def at(self, point: Mapping[str, Any], seed: int | None = None) -> BaseSpec:
        """The spec of a trial; raises `SpecError` if the combination of values is not a valid spec."""
        document = self._document()
        if document["kind"] == "evaluate":
            document.setdefault("baselines", [])
        for path, value in point.items():
            set_in_base(document, path, value)
        if seed is not None:
            document["seed"] = seed
        return parse_base(_measured_alone(document))

    def _document(self) -> dict[str, Any]:
        """A copy of the base as it was written, with its kind."""
        return copy.deepcopy({"kind": next(iter(BASES))} | self.base)

    def promoted(self, point: Mapping[str, Any], promote: PromoteSpec, resources: Mapping[str, Any]) -> dict[str, Any]:
        """The document that promotes a trial: the base as it was written, with the trial's values.

        ``resources`` are those of the base before it was resolved. Raises `SpecError` for an override that cannot be.
        """
        document = self._document() | {"resources": dict(resources)}
        if document["kind"] == "evaluate":
            check_evaluated(promote)
            if any(path.partition(".")[0] == "test" for path in promote.overrides):
                document.pop("held_out", None)  # it has no meaning beside other test images
        for path, value in itertools.chain(point.items(), promote.overrides.items()):
            set_in_base(document, path, value)
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

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_evaluations(cls, data: Any) -> Any:
        base = data.get("base") if isinstance(data, dict) else None
        if not isinstance(base, dict) or base.get("kind") != "evaluate" or "scheduler" in data:
            return data
        return data | {"scheduler": {"name": "none"}}

    @model_validator(mode="after")
    def _promotion_fits(self) -> Self:
        if self.promote and self.promote.register_as and isinstance(self.base_spec, EvaluateSpec):
            raise refuse("promote.register_as", NAMED_IN_BASE, self.promote.register_as)
        return self

    @model_validator(mode="after")
    def _space_fits_base(self) -> Self:
        base = self.base_spec
        for path, parameter in self.space.items():
            check_path(base, path)
            check_values(base, path, parameter)
        for path, parameter in self.space.items():
            check_condition(self, path, parameter)
        self._check_has_valid_point()
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        check_objectives(self)
        check_scheduler(self)
        check_algorithm(self)
        return self

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


def epochs_of(spec: BaseSpec) -> int:
    """The length of a trial in epochs, by which its reports are numbered; an evaluation reports once, as after one."""
    return spec.optimization.epochs if isinstance(spec, PretrainSpec) else 1


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


def _measured_alone(document: dict[str, Any]) -> dict[str, Any]:
    """A trial's document without what it would register, and without the evaluation that would follow it."""
    document.pop("register_as", None)
    if isinstance(document.get("evaluation"), dict):
        document["evaluation"].pop("after", None)
    for protocol in document.get("protocols") or ():
        if isinstance(protocol, dict):
            protocol.pop("register_as", None)
            protocol.pop("export", None)
    return document

"""The spec of a hyperparameter search: a pretraining spec, what varies in it, and what is sought."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from trainer.spec import metric_keys
from trainer.spec.base import (
    AsWritten,
    Document,
    Problem,
    SpecError,
    SpecModel,
    field_at,
    model_at,
    refuse,
    set_value,
    unknown_field,
)
from trainer.spec.export import BackboneName
from trainer.spec.pretrain import Auto, Labels, PositiveFloat, PositiveInt, PretrainSpec, Priority, RetrySpec

Scalar = bool | int | float | str
Point = dict[str, Any]
"""A value for each parameter that applies, by its path in the base spec."""

FIXED: Final = {
    "kind": "is what every trial is",
    "name": "changes no trial",
    "labels": "changes no trial",
    "priority": "changes no trial",
    "retry": "changes no trial",
    "register_as": "changes no trial",
    "export": "changes no trial",
    "checkpoint": "changes no trial's result",
    "resources": "is the same for all trials: set it in base",
    "dataset": "must be the same for trials that are compared: make a search for each",
    "evaluation": "is how trials are compared: it must be the same for all",
}
"""Parts of a spec that no search varies, and why."""

METRICS: Final[dict[str, Literal["min", "max"]]] = {
    metric_keys.LINEAR_TOP1: "max",
    metric_keys.RECONSTRUCTION_RATIO: "min",
    metric_keys.LOSS: "min",
    metric_keys.LOSS_RECONSTRUCTION: "min",
    metric_keys.IMAGES_PER_S: "max",
}
"""What may be sought, and which way by default."""

_TASK: Final = ("method.mask_ratio", "method.norm_pix_loss", "model.patch_size", "model.img_size", "model.preset")
INCOMPARABLE: Final[dict[str, tuple[str, ...]]] = {
    metric_keys.LOSS: (*_TASK, "method.name", "method.consistency_weight"),
    metric_keys.LOSS_RECONSTRUCTION: _TASK,
    metric_keys.RECONSTRUCTION_RATIO: _TASK,
}
"""What must not vary for a metric to mean the same in every trial."""

TRIES: Final = 64
"""Points that are looked at to find out whether a space has any."""


class _Parameter(SpecModel):
    """What every type of parameter has."""

    when: dict[str, tuple[Scalar, ...]] | None = None
    """It applies only where these other parameters have one of these values; null is always."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, when: Any) -> Any:
        if not isinstance(when, dict):
            return when
        return {path: values if isinstance(values, list | tuple) else [values] for path, values in when.items()}

    def values(self) -> tuple[Any, ...] | None:
        """All its values; None where there are too many to count."""
        raise NotImplementedError

    def ends(self) -> dict[str, Any]:
        """What stands in it and must be a value of its field, by where."""
        raise NotImplementedError

    def draw(self, random: Random) -> Any:
        """Some value of it."""
        raise NotImplementedError


class FloatParameter(_Parameter):
    """A number of a range."""

    type: Literal["float"]
    low: float
    high: float
    """Greater than `low`, and in the range itself."""
    log: bool = False
    """Whether its logarithm is what is spread evenly; `low` is then above 0."""
    step: PositiveFloat | None = None
    """Only `low` and what lies so many steps above it; null is any number."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        _check_range(self)
        if self.log and self.step is not None:
            raise refuse("step", "cannot be had together with log: remove one of the two", self.step)
        return self

    def values(self) -> tuple[float, ...] | None:
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(self.low + self.step * index for index in range(count)) if count <= _COUNTABLE else None

    def ends(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "type": self.low + (self.high - self.low) * 0.3717}

    def draw(self, random: Random) -> float:
        if self.log:
            return math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        if self.step is not None:
            return self.low + self.step * random.randint(0, math.floor((self.high - self.low) / self.step + 1e-9))
        return random.uniform(self.low, self.high)


class IntParameter(_Parameter):
    """A whole number of a range."""

    type: Literal["int"]
    low: int
    high: int
    """Greater than `low`, and in the range itself."""
    log: bool = False
    """Whether its logarithm is what is spread evenly; `low` is then above 0."""
    step: PositiveInt = 1
    """Only `low` and what lies so many steps above it."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        _check_range(self)
        if self.log and self.step != 1:
            raise refuse("step", "cannot be had together with log: remove one of the two", self.step)
        return self

    def values(self) -> tuple[int, ...] | None:
        found = range(self.low, self.high + 1, self.step)
        return tuple(found) if len(found) <= _COUNTABLE else None

    def ends(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    def draw(self, random: Random) -> int:
        if self.log:
            return round(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return random.randrange(self.low, self.high + 1, self.step)


class CategoricalParameter(_Parameter):
    """One of a few values."""

    type: Literal["categorical"]
    choices: tuple[JsonValue, ...] = Field(min_length=2, max_length=100)
    """Values of any kind that the field takes."""

    @field_validator("choices")
    @classmethod
    def _all_different(cls, choices: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
        if len({json.dumps(choice) for choice in choices}) < len(choices):
            raise ValueError("must all be different")
        return choices

    def values(self) -> tuple[Any, ...]:
        return self.choices

    def ends(self) -> dict[str, Any]:
        return {f"choices.{index}": choice for index, choice in enumerate(self.choices)}

    def draw(self, random: Random) -> Any:
        return random.choice(self.choices)

    def stored(self, value: Any) -> Scalar | None:
        """A choice as the study has it, which knows no lists and mappings: those are JSON there."""
        return json.dumps(value) if isinstance(value, list | dict) else value

    def read(self, stored: Any) -> Any:
        """A choice from what the study has."""
        return next((choice for choice in self.choices if self.stored(choice) == stored), stored)


Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]
_COUNTABLE: Final = 100_000


def _check_range(parameter: FloatParameter | IntParameter) -> None:
    if parameter.low >= parameter.high:
        raise refuse("high", f"must be greater than low {parameter.low}", parameter.high)
    if parameter.log and parameter.low <= 0:
        raise refuse("low", "must be above 0 where log is true", parameter.low)


class ObjectiveSpec(SpecModel):
    """What is sought."""

    metric: str = Field(metric_keys.LINEAR_TOP1, examples=list(METRICS))
    """A metric of the trials; its value at their last evaluation counts."""
    mode: Literal["min", "max"]
    """Whether less or more of it is better; by default what is usual for the metric."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"is no metric that can be sought: there are {', '.join(METRICS)}")
        return metric

    @model_validator(mode="before")
    @classmethod
    def _usual_mode(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "mode" in data:
            return data
        metric = data.get("metric", metric_keys.LINEAR_TOP1)
        return data | {"mode": METRICS.get(metric, "max") if isinstance(metric, str) else "max"}


def _form(objective: object) -> str:
    return "[many]" if isinstance(objective, list | tuple) else "[one]"


Objectives = Annotated[
    Annotated[ObjectiveSpec, Tag("[one]")] | Annotated[tuple[ObjectiveSpec, ...], Tag("[many]")], Discriminator(_form)
]


class AlgorithmSpec(SpecModel):
    """Where the next trial's values come from."""

    name: Literal["tpe", "random", "grid", "qmc", "cmaes", "gp"] = "tpe"
    """`tpe` learns from the trials before, also with conditions; `gp` (a Gaussian process) needs fewer trials of few
    parameters; `cmaes` is for many numbers; `qmc` spreads points evenly; `grid` takes every combination."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of what the algorithm leaves to chance."""


class SchedulerSpec(SpecModel):
    """Which trials are stopped early."""

    name: Literal["asha", "median", "none"] = "asha"
    """`asha` lets the best of each rung of epochs go on; `median` stops what is worse than the median of the others."""
    grace_epochs: PositiveInt | Auto = "auto"
    """No trial is stopped before it has had so many epochs; a multiple of `base.evaluation.every_epochs`, which is what
    `auto` is."""
    reduction_factor: int = Field(3, ge=2, le=100)
    """Of `asha`: each rung has so many times the epochs of the one before, and one in so many trials reaches it."""


class BudgetSpec(SpecModel):
    """How much is tried. All of it may be changed while the search runs, and after it has ended."""

    trials: int = Field(32, ge=1, le=10_000)
    """Trials in all, infeasible and failed ones among them."""
    concurrency: int = Field(4, ge=1, le=1000)
    """Trials at a time, as far as the cluster has room for them."""
    max_failed: int = Field(8, ge=0, le=10_000)
    """Trials that may fail by an error of their own; one more ends the search."""
    max_hours: PositiveFloat | None = None
    """Hours in which trials run; after them no other begins, and those that run finish. Null is no limit."""


class RepeatsSpec(SpecModel):
    """The best trials once more, with other seeds: one lucky run is not yet the best."""

    best: int = Field(0, ge=0, le=20)
    """So many of them; 0 repeats none."""
    seeds: int = Field(3, ge=1, le=20)
    """Other seeds for each."""


class PromoteSpec(SpecModel):
    """A trial's spec as a pretraining job of its own, with some of it changed."""

    overrides: dict[str, JsonValue] = Field(default_factory=dict, examples=[{"optimization.epochs": 400}])
    """Other values than the trial's, by their path in the spec."""
    register_as: BackboneName | None = None
    """Name under which the job's backbone is registered; null is what the base says."""


class SearchSpec(Document):
    """One hyperparameter search. Every field but `kind`, `base` and `space` has a default."""

    kind: Literal["search"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A name for people; by default the base's."""
    base: Annotated[dict[str, Any], AsWritten(PretrainSpec, {"kind": "pretrain"})]
    """The pretraining spec that every trial starts from, as it would be submitted alone. Trials register nothing: what
    `register_as` says is for a job that a trial is promoted to."""
    space: dict[str, Parameter] = Field(min_length=1, max_length=50)
    """What varies: parameters by their dotted path in the base, such as `optimization.base_lr`."""
    objective: Objectives = Field(default_factory=lambda: ObjectiveSpec.model_validate({}))
    """What is sought; two or three of them in a list, where the search is for what no other trial beats in all."""
    algorithm: AlgorithmSpec = Field(default_factory=AlgorithmSpec)
    scheduler: SchedulerSpec = Field(default_factory=SchedulerSpec)
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    keep: PositiveInt = 3
    """Best trials whose checkpoints are kept when they have ended."""
    repeats: RepeatsSpec = Field(default_factory=RepeatsSpec)
    promote: PromoteSpec | None = None
    """Whether the best trial becomes a pretraining job by itself at the end; null leaves it to people."""
    warm_start: tuple[str, ...] = Field((), max_length=20, examples=[["job-e2k4y0h5c7m9xq"]])
    """Earlier searches over the same space and objective: the algorithm learns from their trials."""
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Names and values of your own, to find jobs by."""
    priority: Priority = 0
    """Jobs of higher priority start first."""

    # -- What follows from it

    @property
    def base_spec(self) -> PretrainSpec:
        """The base with its defaults."""
        return PretrainSpec.parse({"kind": "pretrain"} | self.base)

    @property
    def objectives(self) -> tuple[ObjectiveSpec, ...]:
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    @property
    def epochs(self) -> int:
        """The most that a trial may have."""
        searched = self.space.get("optimization.epochs")
        if isinstance(searched, CategoricalParameter):
            return max(choice for choice in searched.choices if isinstance(choice, int))
        return int(searched.high) if searched else self.base_spec.optimization.epochs

    @property
    def grace_epochs(self) -> int:
        auto = self.scheduler.grace_epochs == "auto"
        return self.base_spec.evaluation.every_epochs if auto else int(self.scheduler.grace_epochs)

    @property
    def grid_size(self) -> int | None:
        """Combinations that there are; None where they cannot be counted."""
        values = [parameter.values() for parameter in self.space.values()]
        if any(found is None for found in values):
            return None
        return math.prod(len(found) for found in values if found is not None)

    @property
    def trials(self) -> int:
        """Trials in all, without repeats: a grid has no more than its combinations."""
        size = self.grid_size if self.algorithm.name == "grid" else None
        return min(self.budget.trials, size) if size is not None else self.budget.trials

    def ordered(self) -> Iterator[tuple[str, Parameter]]:
        """The parameters, each after those that decide whether it applies."""
        done: set[str] = set()
        left = dict(self.space)
        while left:
            ready = [path for path, parameter in left.items() if set(parameter.when or ()) <= done]
            for path in ready or left:  # what waits for itself was refused
                yield path, left[path]
            done.update(ready or left)
            left = {path: parameter for path, parameter in left.items() if path not in done}

    def at(self, point: Mapping[str, Any], seed: int | None = None) -> PretrainSpec:
        """The spec of a trial; raises `SpecError` for a combination that is none."""
        document = copy.deepcopy({"kind": "pretrain"} | self.base)
        for path, value in point.items():
            set_value(document, path, value)
        if seed is not None:
            document["seed"] = seed
        document.pop("register_as", None)
        return PretrainSpec.parse(document)

    def promoted(self, point: Mapping[str, Any], promote: PromoteSpec, resources: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial is submitted as when it is promoted: the base as it was written, with the trial's values.

        ``resources`` are those of the base before they were resolved.
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
            _check_path(path)
            _check_values(path, parameter)
        for path, parameter in self.space.items():
            self._check_condition(path, parameter)
        self._check_some_point()
        return self

    def _check_condition(self, path: str, parameter: Parameter) -> None:
        place = ("space", path, "when")
        for other, values in (parameter.when or {}).items():
            found = self.space.get(other)
            if found is None or other == path:
                raise refuse(place, f"{other!r} is no other parameter of this space", other)
            known = found.values()
            if known is None:
                raise refuse(place, f"{other} has too many values for a condition: give it choices or a step", other)
            for value in values:
                if value not in known:
                    raise refuse(place, f"{other} never is {value!r}", value)
        seen, waiting = set[str](), [path]
        while waiting:
            for other in self.space[waiting.pop()].when or ():
                if other == path:
                    raise refuse(
                        place, "waits for itself: no parameter may decide about one that decides about it", other
                    )
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)

    def applies(self, path: str, point: Mapping[str, Any]) -> bool:
        """Whether a parameter applies at a point that has all those that decide it."""
        conditions = self.space[path].when or {}
        return all(other in point and point[other] in values for other, values in conditions.items())

    def point(self, stored: Mapping[str, Any]) -> Point:
        """A trial's values from what the study has of them."""
        return {
            path: parameter.read(stored[path]) if isinstance(parameter, CategoricalParameter) else stored[path]
            for path, parameter in self.space.items()
            if path in stored
        }

    def stored(self, point: Mapping[str, Any]) -> dict[str, Scalar | None]:
        """A point's values as the study has them."""
        return {
            path: parameter.stored(point[path]) if isinstance(parameter, CategoricalParameter) else point[path]
            for path, parameter in self.space.items()
            if path in point
        }

    def draw(self, random: Random) -> Point:
        """Some point of the space."""
        point: Point = {}
        for path, parameter in self.ordered():
            if self.applies(path, point):
                point[path] = parameter.draw(random)
        return point

    def _check_some_point(self) -> None:
        random, first = Random(0), None  # noqa: S311 - nothing secret
        for _ in range(TRIES):
            try:
                self.at(self.draw(random))
            except SpecError as error:
                first = first or error.problems[0]
            else:
                return
        raise refuse("space", f"has no point that is a spec; at the first one that was tried {first}")

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        given, base = self.objectives, self.base_spec
        place = "objective" if isinstance(self.objective, ObjectiveSpec) else "objective.0"
        if not 1 <= len(given) <= 3:
            raise refuse("objective", "give one, or two or three in a list", len(given))
        if len({each.metric for each in given}) < len(given):
            raise refuse("objective", "must not name a metric twice", [each.metric for each in given])
        for index, each in enumerate(given):
            here = f"{place[:-2]}.{index}.metric" if place.endswith(".0") else f"{place}.metric"
            searched = [path for path in INCOMPARABLE.get(each.metric, ()) if path in self.space]
            if searched:
                text = f"means another thing for each {searched[0]}, which is searched: seek {metric_keys.LINEAR_TOP1}"
                raise refuse(here, text, each.metric)
            if each.metric == metric_keys.LINEAR_TOP1 and base.evaluation.probes == ():
                raise refuse(here, "is not measured: base.evaluation.probes is empty", each.metric)
        return self

    @model_validator(mode="after")
    def _scheduler_fits(self) -> Self:
        scheduler, every, epochs = self.scheduler, self.base_spec.evaluation.every_epochs, self.epochs
        if scheduler.name == "none":
            return self
        if len(self.objectives) > 1:
            text = "cannot tell which trial is worse by several objectives: use none"
            raise refuse("scheduler.name", text, scheduler.name)
        if every >= epochs:
            text = f"has nothing to go by: trials of {epochs} epochs are evaluated every {every}: lower "
            raise refuse("scheduler.name", f"{text}base.evaluation.every_epochs, or use none", scheduler.name)
        if self.grace_epochs % every:
            text = f"must be a multiple of base.evaluation.every_epochs {every}: nothing is known in between"
            raise refuse("scheduler.grace_epochs", text, scheduler.grace_epochs)
        if self.grace_epochs >= epochs:
            raise refuse("scheduler.grace_epochs", f"must be below a trial's {epochs} epochs", scheduler.grace_epochs)
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        for path, parameter in self.space.items():
            if self.algorithm.name == "grid" and parameter.values() is None:
                raise refuse(
                    f"space.{path}", "has too many values for a grid: give it choices or a step", parameter.type
                )
            if self.algorithm.name in {"grid", "cmaes"} and parameter.when:
                text = f"algorithm {self.algorithm.name} knows no conditions: use tpe or random"
                raise refuse(("space", path, "when"), text, None)
            if self.algorithm.name == "cmaes" and isinstance(parameter, CategoricalParameter):
                raise refuse(("space", path, "type"), "algorithm cmaes takes numbers alone: use tpe", parameter.type)
        if self.warm_start and self.algorithm.name in {"random", "grid", "qmc"}:
            text = f"algorithm {self.algorithm.name} learns from no trial: use tpe, gp or cmaes"
            raise refuse("warm_start", text, list(self.warm_start))
        if self.algorithm.name == "cmaes" and len(self.objectives) > 1:
            raise refuse("algorithm.name", "cmaes seeks one objective: use tpe", self.algorithm.name)
        return self


def _check_path(path: str) -> None:
    """Raises where a path names nothing that can vary."""
    part = path.partition(".")[0]
    if part in FIXED:
        raise refuse(("space", path), f"cannot be searched: {part} {FIXED[part]}")
    if field_at(PretrainSpec, path) is None:
        raise refuse(("space", path), unknown_field(PretrainSpec, path))
    inner = model_at(PretrainSpec, path)
    if inner:
        raise refuse(
            ("space", path), f"is a part of a spec: name a value in it, such as {path}.{next(iter(inner.model_fields))}"
        )


def _check_values(path: str, parameter: Parameter) -> None:
    """Raises where one end of a range, or a choice, is no value of its field."""
    field = field_at(PretrainSpec, path)
    if field is None:
        raise TypeError(f"{path} was not checked")
    whole: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter = TypeAdapter[Any](whole)
    for where, value in parameter.ends().items():
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            if where == "type":
                said += ": use type int or categorical"
            raise refuse(("space", path, *where.split(".")), f"{path} {said}", value) from error


def parse_point(spec: SearchSpec, point: Mapping[str, Any]) -> Point:
    """A chosen point, whole or in part; raises `SpecError` where it is none of the space.

    What it leaves out the algorithm chooses.
    """
    known = ", ".join(spec.space)
    found = [
        _wrong(path, value, f"is no parameter of this search: there are {known}")
        for path, value in point.items()
        if path not in spec.space
    ]
    checked: Point = {}
    for path, parameter in spec.ordered():
        if path not in point:
            continue
        problem = _misfit(parameter, point[path])
        if not spec.applies(path, checked):
            problem = "does not apply at this point, or its conditions are not in it: leave it out"
        if problem:
            found.append(_wrong(path, point[path], problem))
        else:
            checked[path] = point[path]
    if found:
        raise SpecError(found)
    return checked


def _wrong(path: str, value: Any, message: str) -> Problem:
    return Problem(f"params.{path}", f"/params/{path}", value, message)


def _misfit(parameter: Parameter, value: Any) -> str | None:
    """Why a value is none of a parameter's; None where it is."""
    if isinstance(parameter, CategoricalParameter):
        choices = ", ".join(map(repr, parameter.choices))
        return None if value in parameter.choices else f"must be one of {choices}"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (isinstance(parameter, IntParameter) and value != int(value)):
        return f"must be a number of type {parameter.type}"
    if not parameter.low <= value <= parameter.high:
        return f"must lie from {parameter.low} to {parameter.high}"
    if parameter.step is not None:
        steps = (value - parameter.low) / parameter.step
        if abs(steps - round(steps)) > 1e-6:
            return f"must be {parameter.low} and so many steps of {parameter.step}"
    return None

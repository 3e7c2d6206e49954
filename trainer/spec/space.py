"""The space of a search: its parameters, and which fields of its base they may vary."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError, field_validator, model_validator

from trainer.spec.base import Problem, SpecError, SpecModel, field_at, model_at, refuse, set_value, unknown_field
from trainer.spec.evaluate import DEFAULT_PROTOCOLS, EvaluateSpec
from trainer.spec.pretrain import PretrainSpec

Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""A whole number that is exact as a float too."""
Real = Annotated[float, Field(ge=-1e15, le=1e15)]
Scalar = bool | Whole | Real | str
Point = dict[str, Any]
"""The values of all parameters that apply, by their path in the base spec."""

BaseSpec = PretrainSpec | EvaluateSpec
"""What the trials of a search are."""
BASES: Final[dict[str, type[PretrainSpec] | type[EvaluateSpec]]] = {"pretrain": PretrainSpec, "evaluate": EvaluateSpec}
"""By kind; the first is that of a base that names none."""

FIXED: Final = {
    "kind": "is the same for every trial",
    "name": "does not affect trials",
    "labels": "does not affect trials",
    "priority": "does not affect trials",
    "retry": "does not affect trials",
    "register_as": "does not affect trials",
    "export": "does not affect trials",
    "checkpoint": "does not affect the results of trials",
    "resources": "is the same for all trials: set it in base",
    "dataset": "must be the same for trials that are compared: submit a search for each",
    "evaluation": "must be the same for all trials, because it compares them",
}
"""Sections of a pretraining spec that a search cannot vary, and why."""
FIXED_EVALUATION: Final = {
    "kind": "is the same for every trial",
    "name": "does not affect trials",
    "labels": "does not affect trials",
    "priority": "does not affect trials",
    "retry": "does not affect trials",
    "resources": "is the same for all trials: set it in base",
    "backbone": "must be the same for trials that are compared: submit a search for each",
    "dataset": "must be the same for trials that are compared: submit a search for each",
    "test": "must be the same for all trials, because it compares them",
    "held_out": "must be the same for all trials, because it compares them",
    "seeds": "must be the same for all trials, because it compares them",
    "seed": "would choose the luckiest seed: set it in base, and use repeats for others",
    "baselines": "does not affect the scores of the backbone",
}
"""The same for an evaluation."""
FIXED_PROTOCOL: Final = {
    "name": "says which protocol it is",
    "solver": "decides which fields the protocol has: set it in base, and submit a search for each",
    "of": "decides what is measured: set it in base",
    "shares": "decides what is measured: set it in base",
    "corruptions": "decides what is measured: set it in base",
    "severities": "decides what is measured: set it in base",
    "reference": "must be the same for all trials, because it compares them",
    "every_epochs": "does not affect the results of trials",
    "register_as": "does not affect trials",
    "export": "does not affect trials",
}
"""Fields of an evaluation's protocols that a search cannot vary, and why."""
PROTOCOLS: Final = "protocols"


TOLERANCE: Final = 1e-6
"""How far a value may lie beside a step or the end of a range with steps, by rounding; in steps."""


class _Parameter(SpecModel):
    """The fields and methods of every type of parameter."""

    when: dict[str, tuple[Scalar, ...]] | None = None
    """The parameter applies only if these other parameters have one of these values; null: it always applies."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, when: Any) -> Any:
        if not isinstance(when, dict):
            return when
        return {path: values if isinstance(values, list | tuple) else [values] for path, values in when.items()}

    def size(self) -> int | None:
        """The number of possible values; None if there are infinitely many."""
        raise NotImplementedError

    def at(self, index: int) -> Any:
        """One of finitely many values, counted from 0."""
        raise NotImplementedError

    def index(self, value: Any) -> int:
        """The index of one of finitely many values: the same for numbers that differ only by rounding."""
        raise NotImplementedError

    def settled(self, value: Any) -> Any:
        """The value of this parameter that a value is, but for rounding."""
        return value

    def values_to_check(self) -> dict[str, Any]:
        """Values that the field must accept, by where the parameter has them: the ends of a range, or the choices."""
        raise NotImplementedError

    def draw(self, random: Random) -> Any:
        """A random value."""
        raise NotImplementedError


class FloatParameter(_Parameter):
    """A number in a range."""

    type: Literal["float"]
    low: Real
    high: Real
    """Greater than `low`; both ends belong to the range."""
    log: bool = False
    """Whether values are spread evenly on a logarithmic scale; `low` must then be above 0."""
    step: Annotated[float, Field(ge=1e-15, le=1e15)] | None = None
    """Only `low` plus multiples of this step; null: any number."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        _check_range(self)
        if self.log and self.step is not None:
            raise refuse("step", "cannot be combined with log: remove one of the two", self.step)
        return self

    def size(self) -> int | None:
        return None if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def at(self, index: int) -> float:
        # In decimals, as Optuna computes the last of these values: as a float, 0.1 + 2 * 0.1 is above 0.3.
        return min(self.high, float(Decimal(str(self.low)) + index * Decimal(str(self._step))))

    def index(self, value: Any) -> int:
        return round((float(value) - self.low) / self._step)

    def settled(self, value: Any) -> Any:
        return value if self.step is None else self.at(self.index(value))

    @property
    def _step(self) -> float:
        if self.step is None:
            raise TypeError("a range without a step has no list of values")
        return self.step

    def values_to_check(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "type": self.low + (self.high - self.low) * 0.3717}

    def draw(self, random: Random) -> float:
        if self.log:
            return math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        if self.step is not None:
            return self.at(random.randint(0, math.floor((self.high - self.low) / self.step + 1e-9)))
        return random.uniform(self.low, self.high)


class IntParameter(_Parameter):
    """A whole number in a range."""

    type: Literal["int"]
    low: Whole
    high: Whole
    """Greater than `low`; both ends belong to the range."""
    log: bool = False
    """Whether values are spread evenly on a logarithmic scale; `low` must then be above 0."""
    step: Annotated[int, Field(ge=1, le=2**53)] = 1
    """Only `low` plus multiples of this step."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        _check_range(self)
        if self.log and self.step != 1:
            raise refuse("step", "cannot be combined with log: remove one of the two", self.step)
        return self

    def size(self) -> int:
        return len(range(self.low, self.high + 1, self.step))

    def at(self, index: int) -> int:
        return self.low + self.step * index

    def index(self, value: Any) -> int:
        return (int(value) - self.low) // self.step

    def values_to_check(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    def draw(self, random: Random) -> int:
        if self.log:
            return round(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return random.randrange(self.low, self.high + 1, self.step)


class CategoricalParameter(_Parameter):
    """One of a few given values."""

    type: Literal["categorical"]
    choices: tuple[JsonValue, ...] = Field(min_length=2, max_length=100)
    """Values of any type that the field accepts."""

    @field_validator("choices")
    @classmethod
    def _check_different(cls, choices: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
        if len({json.dumps(choice) for choice in choices}) < len(choices):
            raise ValueError("must all be different: remove the repeated one")
        return choices

    def size(self) -> int:
        return len(self.choices)

    def at(self, index: int) -> Any:
        return self.choices[index]

    def index(self, value: Any) -> int:
        return [self.stored(choice) for choice in self.choices].index(self.stored(value))

    def values_to_check(self) -> dict[str, Any]:
        return {f"choices.{index}": choice for index, choice in enumerate(self.choices)}

    def draw(self, random: Random) -> Any:
        return random.choice(self.choices)

    def stored(self, value: Any) -> Scalar | None:
        """A choice as the study stores it: lists and mappings, which a study cannot hold, become JSON."""
        return json.dumps(value) if isinstance(value, list | dict) else value

    def read(self, stored: Any) -> Any:
        """The choice that the study has stored as ``stored``."""
        return next((choice for choice in self.choices if self.stored(choice) == stored), stored)


Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]


def _check_range(parameter: FloatParameter | IntParameter) -> None:
    if parameter.low >= parameter.high:
        raise refuse("high", f"must be greater than low {parameter.low}", parameter.high)
    if parameter.log and parameter.low <= 0:
        raise refuse("low", "must be above 0 if log is true", parameter.low)


def parse_base(document: Mapping[str, Any]) -> BaseSpec:
    """The base of a search with its defaults; raises `SpecError`."""
    kind = document.get("kind", next(iter(BASES)))
    if not isinstance(kind, str) or kind not in BASES:
        raise SpecError([Problem("kind", "/kind", kind, f"must be {' or '.join(BASES)}")])
    return BASES[kind].parse({"kind": kind, **document})


def set_in_base(document: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of a base's document, in which protocols are named instead of numbered.

    Raises `SpecError` for a protocol that is not in the document, and if a field on the way is not a mapping.
    """
    section, _, rest = path.partition(".")
    name, _, field = rest.partition(".")
    if section != PROTOCOLS or not field or document.get("kind") != "evaluate":
        set_value(document, path, value)
        return
    items = document.setdefault(PROTOCOLS, [{"name": each.name} for each in DEFAULT_PROTOCOLS])
    found = next((each for each in items if isinstance(each, dict) and each.get("name") == name), None)
    if found is None:
        text = f"unknown field; {_known_protocols(name, [str(each.get('name')) for each in items])}"
        raise SpecError([Problem(path, f"/{path.replace('.', '/')}", value, text)])
    set_value(found, field, value)


def check_path(base: BaseSpec, path: str) -> None:
    """Raise the error of `refuse` if a path does not name a field that a search can vary."""
    part = path.partition(".")[0]
    fixed = FIXED if isinstance(base, PretrainSpec) else FIXED_EVALUATION
    if part in fixed:
        raise refuse(("space", path), f"cannot be searched: {part} {fixed[part]}")
    model, field = _place(base, path)
    if model is not type(base) and field.partition(".")[0] in FIXED_PROTOCOL:
        part = field.partition(".")[0]
        raise refuse(("space", path), f"cannot be searched: {part} {FIXED_PROTOCOL[part]}")
    if field_at(model, field) is None:
        raise refuse(("space", path), unknown_field(model, field))
    inner = model_at(model, field)
    if inner:
        raise refuse(
            ("space", path),
            f"is a section of a spec: name one of its fields, such as {path}.{next(iter(inner.model_fields))}",
        )


def _place(base: BaseSpec, path: str) -> tuple[type[BaseModel], str]:
    """The model of the section that a path lies in, and the rest of the path: a protocol is named by its name."""
    section, _, rest = path.partition(".")
    if isinstance(base, PretrainSpec) or section != PROTOCOLS:
        return type(base), path
    name, _, field = rest.partition(".")
    known = [each.name for each in base.protocols]
    protocol = next((each for each in base.protocols if each.name == name), None)
    if not name or (protocol and not field):
        text = f"is a section of a spec: name a field of one of its protocols, such as protocols.{known[0]}.FIELD"
        raise refuse(("space", path), text)
    if protocol is None:
        raise refuse(("space", path), f"base.protocols has no {name}: {_known_protocols(name, known)}")
    return type(protocol), field


def _known_protocols(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"


def check_values(base: BaseSpec, path: str, parameter: Parameter) -> None:
    """Raise the error of `refuse` if the field does not accept an end of the range, or one of the choices."""
    model, rest = _place(base, path)
    field = field_at(model, rest)
    if field is None:
        raise TypeError(f"{path} was not checked")
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter = TypeAdapter[Any](annotation)
    for where, value in parameter.values_to_check().items():
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            if where == "type":
                problem += ": use type int or categorical"
            raise refuse(("space", path, *where.split(".")), f"{path} {problem}", value) from error


def misfit(parameter: Parameter, value: Any) -> str | None:
    """Why a parameter cannot have a value; None if it can."""
    if isinstance(parameter, CategoricalParameter):
        choices = ", ".join(map(repr, parameter.choices))
        return None if value in parameter.choices else f"must be one of {choices}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (isinstance(parameter, IntParameter) and value != int(value)):
        return f"must be a number of type {parameter.type}"
    rounding = TOLERANCE * (parameter.step or 0)
    if not parameter.low - rounding <= value <= parameter.high + rounding:
        return f"must be between {parameter.low} and {parameter.high}"
    if parameter.step is not None:
        steps = (value - parameter.low) / parameter.step
        if abs(steps - round(steps)) > TOLERANCE:
            return f"must be {parameter.low} plus a multiple of step {parameter.step}"
    return None

"""What every spec model shares: strict fields, and errors that say what to do."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from trainer.spec.masking import masked


class SpecModel(BaseModel):
    """A part of a spec: unknown fields are refused, numbers are finite, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec."""

    field: str
    """Dotted path as people write it, for example ``optimization.epochs``; empty for the whole document."""
    pointer: str
    """The same place as a JSON pointer (RFC 6901)."""
    value: Any
    """What was given there."""
    message: str
    """What is wrong and what to do about it."""

    def __str__(self) -> str:
        shown = "" if self.value is None else f" (given: {masked(self.value, self.field)!r})"
        return f"{self.field or 'spec'}: {self.message}{shown}"

    def as_dict(self) -> dict[str, Any]:
        """As people may see it: credentials in the value are masked."""
        return asdict(self) | {"value": masked(self.value, self.field)}


class SpecError(ValueError):
    """A spec that cannot be accepted, with every problem found in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def refuse(field: str, message: str, value: Any = None) -> PydanticCustomError:
    """An error for a cross-field check, raised inside a validator.

    ``field`` is the dotted path below the model whose validator raises it; the reader sees the full path.
    """
    # The text goes in through the context: pydantic would read braces in it as a format.
    return PydanticCustomError("spec", "{message}", {"message": message, "field": field, "value": value})


def problems(errors: Iterable[ErrorDetails], model: type[BaseModel], skip: int = 0) -> list[Problem]:
    """Pydantic's errors as problems that name the field, the value and the remedy.

    ``model`` is where names are looked up to suggest the nearest one; ``skip`` drops leading parts of each location
    (FastAPI puts ``body`` there).
    """
    found: dict[str, Problem] = {}
    for error in errors:
        problem = _problem(error, model, skip)
        earlier = found.get(problem.pointer)
        if earlier:  # a union reports once for each of its types
            problem = replace(earlier, message=f"{earlier.message}, or {problem.message.removeprefix('must be ')}")
        found[problem.pointer] = problem
    return list(found.values())


def _problem(error: ErrorDetails, model: type[BaseModel], skip: int) -> Problem:
    context = error.get("ctx", {})
    # Parts such as "function-after[…]" name pydantic's own branches of a union, not places in the document.
    given = error["loc"][skip:]
    # An unknown field's own name is the document's, whatever it looks like.
    own = given[-1:] if error["type"] == "extra_forbidden" else ()
    location = [part for part in given[: len(given) - len(own)] if not _is_branch(part)] + list(own)
    value = error.get("input")
    if error["type"] == "spec":
        location += [part for part in str(context["field"]).split(".") if part]
        value = context["value"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = _unknown_field(model, location)
    elif error["type"] == "missing":
        message, value = "is required: add it to the spec", None
    else:
        message = message.replace("Input should be", "must be")
    if isinstance(value, (Mapping, list)) and len(repr(value)) > 80:
        value = None
    return Problem(
        field=".".join(str(part) for part in location),
        pointer="".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location),
        value=value,
        message=message,
    )


def _is_branch(part: object) -> bool:
    return isinstance(part, str) and (
        "[" in part or part in {"int", "float", "str", "bool", "constrained-int", "constrained-float", "none"}
    )


def _unknown_field(model: type[BaseModel], location: Sequence[object]) -> str:
    known = _fields_at(model, location[:-1])
    name = str(location[-1])
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"unknown field; did you mean {close[0]!r}?"
    return f"unknown field; known here: {', '.join(known)}" if known else "unknown field: remove it"


def _fields_at(model: type[BaseModel], path: Sequence[object]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, UnionType):
        return next((m for m in map(_model_in, get_args(annotation)) if m), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


class Document(SpecModel):
    """A spec that stands on its own: read from YAML or JSON, written as JSON."""

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Validate a mapping; raises `SpecError` with every problem in it."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(problems(error.errors(include_url=False), cls)) from error

    def sha256(self) -> str:
        """Identity of the document's content."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def read_document(text: str) -> dict[str, Any]:
    """A mapping from YAML or JSON text (JSON is YAML); raises `SpecError` where it is neither."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError([Problem("", "", None, f"is neither YAML nor JSON: {error}")]) from error
    if not isinstance(data, dict):
        raise SpecError([Problem("", "", data, "must be a mapping of fields, for example `kind: pretrain`")])
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``a.b=c`` assignments over a spec's mapping; values are read as YAML. The input is left as it was.

    >>> apply_overrides({"seed": 0}, ["optimization.epochs=5", "seed=1"])
    {'seed': 1, 'optimization': {'epochs': 5}}
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not all(path.split(".")):
            raise SpecError([Problem(path, "", override, "write overrides as key=value, for example seed=1")])
        *parents, last = path.split(".")
        node = result
        for depth, part in enumerate(parents):
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                here = ".".join(parents[: depth + 1])
                raise SpecError([Problem(here, "", child, f"is a value, so {path!r} cannot be set below it")])
            node = child
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SpecError([Problem(path, "", text, f"is not YAML: {error}")]) from error
    return result

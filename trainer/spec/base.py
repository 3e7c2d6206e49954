"""What every spec model shares: strict fields, and errors that say what to do."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

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


def refuse(field: str | Sequence[str], message: str, value: Any = None) -> PydanticCustomError:
    """An error for a cross-field check, raised inside a validator.

    ``field`` is the dotted path below the model whose validator raises it, or its parts where one has dots itself; the
    reader sees the full path.
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
        field = context["field"]
        location += [part for part in (field.split(".") if isinstance(field, str) else field) if part]
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
        "[" in part
        or part in {"int", "float", "str", "bool", "constrained-int", "constrained-float", "none", "categorical"}
    )


def unknown_field(model: type[BaseModel], path: str) -> str:
    """What to say of a dotted path that names nothing: the nearest name, or those that there are."""
    parts = path.split(".")
    while len(parts) > 1 and not _fields_at(model, parts[:-1]):
        parts.pop()
    return _unknown_field(model, parts)


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
        inner = _model_of(field) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def field_at(model: type[BaseModel], path: str) -> FieldInfo | None:
    """The field that a dotted path names; None where there is none."""
    *parents, last = path.split(".")
    for part in parents:
        field = model.model_fields.get(part)
        inner = _model_of(field) if field else None
        if inner is None:
            return None
        model = inner
    return model.model_fields.get(last)


def model_at(model: type[BaseModel], path: str) -> type[BaseModel] | None:
    """The model that a dotted path names; None where it names a value, or nothing."""
    field = field_at(model, path)
    return _model_of(field) if field else None


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    written = next((each.model for each in field.metadata if isinstance(each, AsWritten)), None)
    return written or _model_in(field.annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, UnionType):
        return next((m for m in map(_model_in, get_args(annotation)) if m), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


@dataclass(frozen=True)
class AsWritten:
    """Marks a mapping that must be a ``model``, and is kept as it was written: what it leaves out stays open.

    ``given`` is what need not be written.
    """

    model: type[BaseModel]
    given: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash(self.model)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checked by the model, whose schema it has."""
        del source

        def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            inner({**self.given, **value} if isinstance(value, Mapping) else value)
            return copy.deepcopy(dict(value))

        schema = handler.generate_schema(self.model)
        plain = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        return core_schema.no_info_wrap_validator_function(check, schema, serialization=plain)


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


class _Loader(yaml.SafeLoader):
    """YAML with JSON's numbers: of those, YAML 1.1 takes `1e-4` for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - it is a safe loader


def read_yaml(text: str) -> Any:
    """What YAML or JSON text holds (JSON is YAML); raises `SpecError` where it is neither."""
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise SpecError([Problem("", "", None, f"is neither YAML nor JSON: {error}")]) from error


def read_document(text: str) -> dict[str, Any]:
    """A mapping from YAML or JSON text; raises `SpecError` where it is neither."""
    data = read_yaml(text)
    if not isinstance(data, dict):
        raise SpecError([Problem("", "", data, "must be a mapping of fields, for example `kind: pretrain`")])
    return data


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Values by dotted path from ``a.b=c`` assignments; values are read as YAML.

    >>> parse_overrides(["optimization.epochs=5", "seed=1"])
    {'optimization.epochs': 5, 'seed': 1}
    """
    values: dict[str, Any] = {}
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not all(path.split(".")):
            raise SpecError([Problem(path, "", override, "write overrides as key=value, for example seed=1")])
        try:
            values[path] = _load(text)
        except yaml.YAMLError as error:
            raise SpecError([Problem(path, "", text, f"is not YAML: {error}")]) from error
    return values


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A spec's mapping with ``a.b=c`` assignments over it, as `parse_overrides`. The input is left as it was.

    >>> apply_overrides({"seed": 0}, ["optimization.epochs=5", "seed=1"])
    {'seed': 1, 'optimization': {'epochs': 5}}
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for path, value in parse_overrides(overrides).items():
        set_value(result, path, value)
    return result


def set_value(document: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a dotted path; raises `SpecError` where something on the way is no mapping."""
    *parents, last = path.split(".")
    node = document
    for depth, part in enumerate(parents):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            here = ".".join(parents[: depth + 1])
            raise SpecError([Problem(here, "", child, f"is a value, so {path!r} cannot be set below it")])
        node = child
    node[last] = value

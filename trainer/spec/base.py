"""What all spec models share: strict fields, and errors that say what to do."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from types import UnionType
from typing import Annotated, Any, Final, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from trainer.spec import yaml_text
from trainer.spec.masking import masked

KIND_BRANCH: Final = "kind["
"""How the part of an error's location begins that names the kind of a document in another one."""


class SpecModel(BaseModel):
    """A part of a spec: unknown fields are refused, numbers are finite, and values cannot change after validation."""

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
    """Dotted path, for example ``optimization.epochs``; empty for the whole document."""
    pointer: str
    """The field as a JSON pointer (RFC 6901)."""
    value: Any
    """The value that was given."""
    message: str
    """What is wrong and what to do about it."""

    def __str__(self) -> str:
        shown = "" if self.value is None else f" (given: {masked(self.value, self.field)!r})"
        return f"{self.field or 'spec'}: {self.message}{shown}"

    def as_dict(self) -> dict[str, Any]:
        """As users may see it: credentials in the value are masked."""
        return asdict(self) | {"value": masked(self.value, self.field)}


class SpecError(ValueError):
    """A spec is invalid; holds every problem in it. Survives pickling."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[Sequence[Problem]]]:
        """Pickled with its problems: by default an exception is made again from its text."""
        return type(self), (self.problems,)


def refuse(field: str | Sequence[str], message: str, value: Any = None) -> PydanticCustomError:
    """An error for a cross-field check, raised inside a validator.

    ``field`` is the dotted path below the model whose validator raises it, or a list of its parts if a part contains
    dots. The message shows the full path.
    """
    # The text is passed as context because pydantic would treat braces in it as a format.
    return PydanticCustomError("spec", "{message}", {"message": message, "field": field, "value": value})


class _ByForm(Discriminator):
    """One that unions may hold: they compare their parts, and pydantic's own has no hash."""

    def __hash__(self) -> int:
        return hash(self.discriminator)


def by_form(form: Callable[[Any], str | None], field: str, message: str) -> Discriminator:
    """Chooses the model of a union by the tag that ``form`` gives a value; None is refused with ``message``.

    Tags have brackets, such as ``form[job]``: messages about fields leave them out.
    """
    context: dict[str, int | str | float] = {"message": message, "field": field}
    return _ByForm(form, custom_error_type="spec", custom_error_message="{message}", custom_error_context=context)


def problems(errors: Iterable[ErrorDetails], model: type[BaseModel], skip: int = 0) -> list[Problem]:
    """Pydantic's errors as problems that name the field, the value and the remedy.

    ``model`` is where names are looked up to suggest the nearest one; ``skip`` drops leading parts of each location
    (FastAPI puts ``body`` there).
    """
    by_pointer: dict[str, Problem] = {}
    found = list(errors)
    # A list of which an item is refused is also too short for pydantic, as it then has fewer items.
    refused = {error["loc"][:-depth] for error in found for depth in range(1, len(error["loc"]))}
    for error in found:
        if error["type"] == "too_short" and error["loc"] in refused:
            continue
        problem = _problem(error, model, skip)
        earlier = by_pointer.get(problem.pointer)
        if earlier:  # a union reports an error for each of its types
            problem = replace(earlier, message=f"{earlier.message}, or {problem.message.removeprefix('must be ')}")
        by_pointer[problem.pointer] = problem
    return list(by_pointer.values())


def _problem(error: ErrorDetails, model: type[BaseModel], skip: int) -> Problem:
    context = error.get("ctx", {})
    # Parts such as "function-after[…]" name branches of a union in pydantic, not fields of the document.
    path = error["loc"][skip:]
    # The name of an unknown field is always part of the document, even if it looks like a branch.
    unknown = path[-1:] if error["type"] == "extra_forbidden" else ()
    location = [part for part in path[: len(path) - len(unknown)] if not _is_branch(part)] + list(unknown)
    value = error.get("input")
    if error["type"] == "spec":
        field = context["field"]
        location += [part for part in (field.split(".") if isinstance(field, str) else field) if part]
        value = context.get("value")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        kinds = [part for part in path[:-1] if _names_kind(part) or not _is_branch(part)]
        message = _unknown_field(model, [*kinds, *unknown])
    elif error["type"] == "missing":
        message, value = "is required: add it to the spec", None
    else:
        message = message.replace("Input should be", "must be").replace("a valid tuple", "a list")
    if isinstance(value, (Mapping, list)) and len(repr(value)) > 80:
        value = None
    return Problem(
        field=".".join(str(part) for part in location),
        pointer=_pointer(location),
        value=value,
        message=message,
    )


def _pointer(location: Iterable[object]) -> str:
    """A location as a JSON pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def _is_branch(part: object) -> bool:
    return isinstance(part, str) and (
        "[" in part
        or part in {"int", "float", "str", "bool", "constrained-int", "constrained-float", "none", "categorical"}
    )


def unknown_field(model: type[BaseModel], path: str) -> str:
    """The message for a dotted path that names no field: it suggests the nearest name, or lists the known ones."""
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
    for part, following in zip_longest(path, path[1:]):
        if _names_kind(part):
            continue
        field = model.model_fields.get(str(part))
        inner = _model_of(field, following) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def field_at(model: type[BaseModel], path: str) -> FieldInfo | None:
    """The field that a dotted path names; None if there is none."""
    *parents, last = path.split(".")
    for part in parents:
        field = model.model_fields.get(part)
        inner = _model_of(field) if field else None
        if inner is None:
            return None
        model = inner
    return model.model_fields.get(last)


def model_at(model: type[BaseModel], path: str) -> type[BaseModel] | None:
    """The model that a dotted path names; None if it names a plain field, or none."""
    field = field_at(model, path)
    return _model_of(field) if field else None


def _model_of(field: FieldInfo, branch: object = None) -> type[BaseModel] | None:
    """The model of a field's values; ``branch``: the part of an error's location that names the kind of a document."""
    written = next((each for each in field.metadata if isinstance(each, AsWritten)), None)
    if written is None:
        return _model_in(field.annotation)
    kind = str(branch)[len(KIND_BRANCH) : -1] if _names_kind(branch) else ""
    return written.kinds.get(kind, next(iter(written.kinds.values())))


def _names_kind(part: object) -> bool:
    return isinstance(part, str) and part.startswith(KIND_BRANCH)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is Annotated:
        return _model_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        models = [model for model in map(_model_in, get_args(annotation)) if model]
        return models[0] if len(models) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


@dataclass(frozen=True)
class AsWritten:
    """Marks a mapping that must be a valid spec and is stored as it was written, without the defaults.

    ``kinds`` are the models that it may have, by its field `kind`, which need not be written for the first one.
    """

    kinds: Mapping[str, type[BaseModel]]

    def __hash__(self) -> int:
        return hash(tuple(self.kinds.values()))

    def kind_of(self, value: Any) -> Any:
        """The kind that a value names, or the first one."""
        named = value.get("kind") if isinstance(value, Mapping) else None
        return next(iter(self.kinds)) if named is None else named

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validates with the model of the kind and has the models' JSON schema."""
        del source

        def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            inner({"kind": self.kind_of(value), **value} if isinstance(value, Mapping) else value)
            return copy.deepcopy(dict(value))

        def tag(value: Any) -> str | None:
            kind = self.kind_of(value)
            return f"{KIND_BRANCH}{kind}]" if isinstance(kind, str) and kind in self.kinds else None

        kinds = {f"{KIND_BRANCH}{kind}]": handler.generate_schema(model) for kind, model in self.kinds.items()}
        text = f"must be {' or '.join(self.kinds)}"
        schema = core_schema.tagged_union_schema(
            kinds, tag, custom_error_type="spec", custom_error_message="{message}",
            custom_error_context={"message": text, "field": "kind"},
        )  # fmt: skip
        plain = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        return core_schema.no_info_wrap_validator_function(check, schema, serialization=plain)


class Document(SpecModel):
    """A complete spec: read from YAML or JSON, written as JSON."""

    @property
    def reads_source(self) -> bool:
        """Whether an attempt reads a version, or a checkpoint of another job, so that its request says where it is."""
        return False

    @property
    def images_per_step(self) -> int | None:
        """Training images of one optimiser step, by which pictures and progress count; None for other jobs."""
        return None

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Validate a mapping; raises `SpecError` with every problem in it."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(problems(error.errors(include_url=False), cls)) from error

    def sha256(self) -> str:
        """Identity of the document's content: a sha256 over its JSON with sorted keys."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def read_yaml(text: str) -> Any:
    """The content of YAML or JSON text (JSON is YAML); raises `SpecError`, with the line, for what JSON cannot hold."""
    return read_with_lines(text)[0]


def read_with_lines(text: str, field: str = "") -> tuple[Any, dict[str, int]]:
    """Like `read_yaml`, with the line of each field by dotted path. ``field`` is the path of the text's own value."""
    try:
        return yaml_text.load(text)
    except yaml_text.YamlError as error:
        path = [*(field.split(".") if field else ()), *error.path]
        raise SpecError([Problem(".".join(path), _pointer(path), None, str(error))]) from error


def read_document(text: str) -> dict[str, Any]:
    """The mapping in YAML or JSON text; raises `SpecError` if it is neither, or no mapping."""
    return document_with_lines(text)[0]


def document_with_lines(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Like `read_document`, with the line of each field by dotted path, from 1."""
    data, lines = read_with_lines(text)
    if not isinstance(data, dict):
        raise SpecError([Problem("", "", data, "must be a mapping of fields, for example `kind: pretrain`")])
    return data, lines


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
        values[path], _ = read_with_lines(text, path)
    return values


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a spec's mapping with ``a.b=c`` assignments applied, as `parse_overrides` reads them.

    >>> apply_overrides({"seed": 0}, ["optimization.epochs=5", "seed=1"])
    {'seed': 1, 'optimization': {'epochs': 5}}
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for path, value in parse_overrides(overrides).items():
        set_value(result, path, value)
    return result


def set_value(document: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path; raises `SpecError` if a field on the way is not a mapping."""
    *parents, last = path.split(".")
    node = document
    for depth, part in enumerate(parents):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            here = ".".join(parents[: depth + 1])
            told = f"; give the whole list: {here}=[…]" if isinstance(child, list) else ""
            raise SpecError([Problem(here, "", child, f"is not a mapping, so {path!r} cannot be set in it{told}")])
        node = child
    node[last] = value

"""A spec as a form. Its groups and fields are derived from the models, so that new fields appear automatically."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from service.http.json_text import flat
from trainer.spec.embed import EmbedSpec
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec

MODELS: Final[dict[str, type[BaseModel]]] = {
    "pretrain": PretrainSpec,
    "search": SearchSpec,
    "evaluate": EvaluateSpec,
    "embed": EmbedSpec,
}
OPEN: Final = frozenset({"", "dataset", "model", "optimization", "budget"})
"""Groups that are open at first."""
SIMPLE: Final = frozenset(
    {
        *("name", "register_as", "seed", "dataset.uri", "model.preset", "method.name", "method.mask_ratio"),
        *("method.consistency_weight", "method.teacher.momentum", "optimization.epochs", "optimization.base_lr"),
        *("optimization.global_batch_size", "resources.workers", "evaluation.every_epochs", "budget.trials"),
        *("budget.concurrency", "algorithm.name", "scheduler.name", "scheduler.grace_epochs"),
    }
)
"""The most used fields, which come first in their groups."""
OWN_WIDGETS: Final = frozenset({"kind", "space", "objective", "base", "backbone", "protocols", "baselines"})
"""Fields without a plain input: those with widgets of their own, and the fixed kind."""
WORDS: Final = {
    "uri": "URI",
    "lr": "learning rate",
    "gpus": "GPUs",
    "cpus": "CPUs",
    "img": "image",
    "chans": "channels",
    "dim": "width",
    "hflip": "horizontal flip",
    "std": "standard deviation",
}
"""Abbreviations in field names, spelled out for labels."""
NOT_SEARCHED: Final = ("kind", "name", "dataset", "register_as", "labels", "priority", "export", "retry", "checkpoint")


@dataclass(frozen=True)
class FormField:
    """One field of a spec."""

    path: str
    """The dotted path, as problems name it."""
    label: str
    hint: str
    value: str
    """The value as text; empty if the default applies."""
    default: str
    options: Sequence[str] = ()
    """The allowed values, if they can be listed."""
    type: str = "value"
    """How the text is parsed: `text` unchanged, `value` as JSON if it is valid JSON, `labels` as name:value lines."""
    required: bool = False


@dataclass(frozen=True)
class Group:
    """Fields that belong together."""

    path: str
    title: str
    hint: str
    fields: Sequence[FormField] = field(default_factory=tuple)
    open: bool = False


def groups(kind: str, document: Mapping[str, Any], prefix: str = "") -> list[Group]:
    """The form of a spec, filled from a document. ``prefix`` is the spec's path in an enclosing spec, with a dot."""
    schema = MODELS[kind].model_json_schema()
    general = tuple(_own_fields(schema, schema["properties"], document, "", prefix))
    result = [Group("", "General", "", general, not prefix)]
    for name, part in schema["properties"].items():
        model = _model(schema, part)
        if model is None or name in OWN_WIDGETS:
            continue
        inner = document.get(name)
        fields = tuple(_all_fields(schema, model, inner if isinstance(inner, Mapping) else {}, f"{name}.", prefix))
        ordered = sorted(fields, key=lambda each: each.path.removeprefix(prefix) not in SIMPLE)
        filled = any(each.value for each in fields)
        hint = str(part.get("description") or model.get("description") or "").split("\n")[0]
        opened = name == "dataset" if prefix else name in OPEN or filled  # of an inner spec, few groups matter
        result.append(Group(name, _label(name), hint, ordered, opened))
    return result


def fields_of(model: type[BaseModel], document: Mapping[str, Any], path: str) -> list[FormField]:
    """The fields of one model, filled from its part of a document, which is at a path that ends with a dot."""
    schema = model.model_json_schema()
    return list(_all_fields(schema, schema, document, "", path))


def _all_fields(
    schema: Mapping[str, Any], model: Mapping[str, Any], document: Mapping[str, Any], path: str, prefix: str
) -> Iterator[FormField]:
    """The fields of a model and of the models within it."""
    yield from _own_fields(schema, model["properties"], document, path, prefix)
    for name, part in model["properties"].items():
        if inner := _model(schema, part):
            value = document.get(name)
            yield from _all_fields(schema, inner, value if isinstance(value, Mapping) else {}, f"{path}{name}.", prefix)


def _own_fields(
    schema: Mapping[str, Any], properties: Mapping[str, Any], document: Mapping[str, Any], path: str, prefix: str
) -> Iterator[FormField]:
    """The fields of a model that are not models themselves."""
    for name, part in properties.items():
        if _model(schema, part) is not None or (not path and name in OWN_WIDGETS):
            continue
        options, kind = _options_and_type(part)
        yield FormField(
            path=f"{prefix}{path}{name}",
            label=_label(f"{path}{name}".partition(".")[2] or name),
            hint=" ".join([*str(part.get("description", "")).split(), *_bounds(part)]),
            value=text_of(document[name], kind) if name in document else "",
            default=text_of(part["default"], kind) if part.get("default") is not None else "",
            options=options,
            type=kind,
            required=f"{path}{name}" == "dataset.uri",
        )


def _options_and_type(part: Mapping[str, Any]) -> tuple[Sequence[str], str]:
    """`FormField.options` and `FormField.type` of a property of a schema."""
    if "additionalProperties" in part:
        return (), "labels"
    if part.get("enum"):
        return [text_of(each, "value") for each in part["enum"]], "value"
    if part.get("type") == "boolean":
        return ("true", "false"), "value"
    choices = part.get("anyOf", ())
    if choices and all("const" in each or each.get("type") in {"boolean", "null"} for each in choices):
        return [text for each in choices for text in _choices(each)], "value"
    types = {each.get("type") for each in choices} | {part.get("type")}
    return (), "text" if "string" in types - {None} and not types & {"number", "integer", "array"} else "value"


def _bounds(part: Mapping[str, Any]) -> Iterator[str]:
    """The least and the greatest number of a property, in words."""
    for each in (part, *part.get("anyOf", ())):
        if each.get("type") in {"integer", "number"} and "maximum" in each:
            least = f"From {each['minimum']}" if "minimum" in each else f"Above {each['exclusiveMinimum']}"
            yield f"{least} to {each['maximum']}."


def _choices(part: Mapping[str, Any]) -> list[str]:
    if "const" in part:
        return [str(part["const"])]
    return ["null"] if part["type"] == "null" else ["true", "false"]


def _model(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model of a property, also of an optional one; None for a plain value."""
    references = [part, *part.get("allOf", ()), *part.get("anyOf", ())]
    for each in references:
        if "$ref" in each:
            definition: Mapping[str, Any] = schema["$defs"][each["$ref"].rpartition("/")[2]]
            return definition if "properties" in definition else None
    return None


def _label(name: str) -> str:
    """A field's name as a label; its path is in the tooltip."""
    words = [WORDS.get(word, word) for word in name.replace(".", ": ").replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def text_of(value: Any, kind: str) -> str:
    """A value as it is typed into the form."""
    if isinstance(value, str):
        return value
    if kind == "labels" and isinstance(value, Mapping):
        return "\n".join(f"{name}:{text}" for name, text in value.items())
    return json.dumps(value)


def searchable() -> list[str]:
    """The paths that a search space may name."""
    paths = [each.path for group in groups("pretrain", {}) for each in group.fields]
    return [path for path in paths if path.partition(".")[0] not in NOT_SEARCHED and path]


def pruned(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec without the values that equal their defaults."""
    if kind == "search":
        rest = {name: value for name, value in document.items() if name not in {"base", "space", "objective"}}
        own = _without(rest, _defaults(SearchSpec.model_json_schema()))
        base = pruned("pretrain", document["base"])
        return {"kind": "search"} | own | {name: document[name] for name in ("space", "objective")} | {"base": base}
    if kind in ("evaluate", "embed"):
        kept = {name: document[name] for name in ("kind", "backbone")} | {
            name: {"uri": document[name]["uri"]} for name in ("dataset", "test") if document.get(name)
        }
        model = EvaluateSpec if kind == "evaluate" else EmbedSpec
        return _merged(kept, _without(document, flat(model.parse(kept).model_dump(mode="json"))))
    minimal = {"kind": kind, "dataset": {"uri": document["dataset"]["uri"]}}
    preset = document.get("model", {}).get("preset")
    defaults = PretrainSpec.parse(minimal | ({"model": {"preset": preset}} if preset else {})).model_dump(mode="json")
    kept = {"kind": kind, "dataset": {"uri": document["dataset"]["uri"]}}
    if preset:
        kept["model"] = {"preset": preset}
    return _merged(kept, _without(document, flat(defaults)))


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The default values in a schema, by dotted path."""
    defaults: dict[str, Any] = {}
    for name, part in schema["properties"].items():
        if (model := _model(schema, part)) and name != "base":
            defaults |= {
                f"{name}.{inner}": each["default"] for inner, each in model["properties"].items() if "default" in each
            }
        elif "default" in part:
            defaults[name] = part["default"]
    return defaults


def _without(document: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A document without empty values and without those that equal the defaults, which are given by dotted path."""
    kept: dict[str, Any] = {}
    for path, value in flat(document).items():
        if path != "kind" and value not in ({}, None, []) and defaults.get(path, ...) != value:
            node = kept
            *parents, last = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return kept


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for name, value in other.items():
        own = merged.get(name)
        merged[name] = _merged(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return merged

"""A spec as a form: its groups and fields out of the models themselves, so that a new field appears by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from pydantic import BaseModel

from service.dashboard.shown import flat
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec

MODELS: Final[dict[str, type[BaseModel]]] = {"pretrain": PretrainSpec, "search": SearchSpec}
OPEN: Final = frozenset({"", "dataset", "model", "optimization", "budget"})
"""Groups that are not folded away."""
SIMPLE: Final = frozenset(
    {
        *("name", "register_as", "seed", "dataset.uri", "model.preset", "method.name", "method.mask_ratio"),
        *("method.consistency_weight", "method.teacher.momentum", "optimization.epochs", "optimization.base_lr"),
        *("optimization.global_batch_size", "resources.workers", "evaluation.every_epochs", "budget.trials"),
        *("budget.concurrency", "algorithm.name", "scheduler.name", "scheduler.grace_epochs"),
    }
)
"""What people set most: first in its group."""
OWN_WIDGETS: Final = frozenset({"kind", "space", "objective", "base"})
"""Parts of a search that are no plain fields, and what is settled."""
SPOKEN: Final = {
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
"""What short names are in words."""
NOT_SEARCHED: Final = ("kind", "name", "dataset", "register_as", "labels", "priority", "export", "retry", "checkpoint")


@dataclass(frozen=True)
class FormField:
    """One value of a spec."""

    path: str
    """Dotted, as problems name it."""
    label: str
    hint: str
    value: str
    """As text; empty where it is left to its default."""
    default: str
    options: Sequence[str] = ()
    """All it may be, where those can be told."""
    type: str = "value"
    """How its text is read: `text` as it is, `value` as JSON where it is some, `labels` as name:value lines."""
    required: bool = False


@dataclass(frozen=True)
class Group:
    """Fields that belong together."""

    path: str
    title: str
    hint: str
    fields: Sequence[FormField] = field(default_factory=tuple)
    open: bool = False


def groups(kind: str, document: Mapping[str, Any], before: str = "") -> list[Group]:
    """The form of a spec, filled with what a document says; ``before`` is where it lies in a larger one."""
    schema = MODELS[kind].model_json_schema()
    general = tuple(_leaves(schema, schema["properties"], document, "", before))
    found = [Group("", "General", "", general, not before)]
    for name, part in schema["properties"].items():
        model = _model(schema, part)
        if model is None or name in OWN_WIDGETS:
            continue
        inner = document.get(name)
        fields = tuple(_all(schema, model, inner if isinstance(inner, Mapping) else {}, f"{name}.", before))
        ordered = sorted(fields, key=lambda each: each.path.removeprefix(before) not in SIMPLE)
        filled = any(each.value for each in fields)
        hint = str(part.get("description") or model.get("description") or "").split("\n")[0]
        unfolded = name == "dataset" if before else name in OPEN or filled  # within another spec few are of interest
        found.append(Group(name, _words(name), hint, ordered, unfolded))
    return found


def _all(
    schema: Mapping[str, Any], model: Mapping[str, Any], document: Mapping[str, Any], path: str, before: str
) -> Iterator[FormField]:
    """The fields of a model and of those within it."""
    yield from _leaves(schema, model["properties"], document, path, before)
    for name, part in model["properties"].items():
        if inner := _model(schema, part):
            value = document.get(name)
            yield from _all(schema, inner, value if isinstance(value, Mapping) else {}, f"{path}{name}.", before)


def _leaves(
    schema: Mapping[str, Any], parts: Mapping[str, Any], document: Mapping[str, Any], path: str, before: str
) -> Iterator[FormField]:
    for name, part in parts.items():
        if _model(schema, part) is not None or (not path and name in OWN_WIDGETS):
            continue
        options, kind = _kind(part)
        yield FormField(
            path=f"{before}{path}{name}",
            label=_words(f"{path}{name}".partition(".")[2] or name),
            hint=" ".join(str(part.get("description", "")).split()),
            value=text_of(document[name], kind) if name in document else "",
            default=text_of(part["default"], kind) if part.get("default") is not None else "",
            options=options,
            type=kind,
            required=f"{path}{name}" == "dataset.uri",
        )


def _kind(part: Mapping[str, Any]) -> tuple[Sequence[str], str]:
    """What a field may be, and how its text is read."""
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


def _choices(part: Mapping[str, Any]) -> list[str]:
    if "const" in part:
        return [str(part["const"])]
    return ["null"] if part["type"] == "null" else ["true", "false"]


def _model(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model that a part of a schema is, or may be; None for a plain value."""
    references = [part, *part.get("allOf", ()), *part.get("anyOf", ())]
    for each in references:
        if "$ref" in each:
            found: Mapping[str, Any] = schema["$defs"][each["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _words(name: str) -> str:
    """A field's name as a label; its path is in the tooltip."""
    words = [SPOKEN.get(word, word) for word in name.replace(".", ": ").replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def text_of(value: Any, kind: str) -> str:
    """A value as one types it."""
    if isinstance(value, str):
        return value
    if kind == "labels" and isinstance(value, Mapping):
        return "\n".join(f"{name}:{text}" for name, text in value.items())
    return json.dumps(value)


def searchable() -> list[str]:
    """Paths that a space may name."""
    found = [each.path for group in groups("pretrain", {}) for each in group.fields]
    return [path for path in found if path.partition(".")[0] not in NOT_SEARCHED and path]


def pruned(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A spec without what is as by default: what somebody meant by it."""
    if kind == "search":
        rest = {name: value for name, value in document.items() if name not in {"base", "space", "objective"}}
        own = _without(rest, _defaults(SearchSpec.model_json_schema()))
        base = pruned("pretrain", document["base"])
        return {"kind": "search"} | own | {name: document[name] for name in ("space", "objective")} | {"base": base}
    least = {"kind": kind, "dataset": {"uri": document["dataset"]["uri"]}}
    preset = document.get("model", {}).get("preset")
    defaults = PretrainSpec.parse(least | ({"model": {"preset": preset}} if preset else {})).model_dump(mode="json")
    kept = {"kind": kind, "dataset": {"uri": document["dataset"]["uri"]}}
    if preset:
        kept["model"] = {"preset": preset}
    return _merged(kept, _without(document, flat(defaults)))


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted path."""
    found: dict[str, Any] = {}
    for name, part in schema["properties"].items():
        if (model := _model(schema, part)) and name != "base":
            found |= {
                f"{name}.{inner}": each["default"] for inner, each in model["properties"].items() if "default" in each
            }
        elif "default" in part:
            found[name] = part["default"]
    return found


def _without(document: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
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
    found = dict(one)
    for name, value in other.items():
        before = found.get(name)
        found[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return found


def lines_of(text: str) -> dict[str, int]:
    """The line of every field of a YAML document, by dotted path, counted from one."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = f"{path}.{key.value}" if path else str(key.value)
                found[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                found[f"{path}.{index}"] = value.start_mark.line + 1
                walk(value, f"{path}.{index}")

    root = yaml.compose(text, yaml.SafeLoader)
    if root is not None:
        walk(root, "")
    return found

"""Every number that a user may send has a least and a greatest value, in the models and in the API's description."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from service_fakes import SPEC, problem, spec_with

from service.dashboard.specform import groups
from trainer.spec.base import SpecError
from trainer.spec.job import SPECS, parse_spec
from trainer.spec.presets import PRESETS
from trainer.spec.ready_searches import READY, ready_search

LEAST, GREATEST = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}


def numbers(
    schema: Any, definitions: dict, path: str, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, dict]]:
    """Each number below a schema, with its path; a definition inside itself is followed once."""
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        if name not in above:
            yield from numbers(definitions[name], definitions, path, above | {name})
        return
    if schema.get("type") in {"integer", "number"} and not {"const", "enum"} & schema.keys():
        yield path, schema
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for each in schema.get(key, ()):
            yield from numbers(each, definitions, path, above)
    for key, each in schema.get("properties", {}).items():
        yield from numbers(each, definitions, f"{path}.{key}", above)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from numbers(schema[key], definitions, f"{path}[]", above)


def of_specs() -> Iterator[tuple[str, dict]]:
    for kind, model in SPECS.items():
        schema = model.model_json_schema()
        yield from numbers(schema, schema["$defs"], kind)


def of_requests(app: FastAPI) -> Iterator[tuple[str, dict]]:
    document = app.openapi()
    definitions = document["components"]["schemas"]
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                yield from numbers(parameter["schema"], definitions, f"{operation['operationId']} {parameter['name']}")
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield from numbers(content["schema"], definitions, operation["operationId"])


def test_no_number_of_a_spec_or_a_request_is_unbounded(routes):
    found = [*of_specs(), *of_requests(routes)]
    assert len(found) > 200
    unbounded = [path for path, schema in found if not (LEAST & schema.keys() and GREATEST & schema.keys())]
    assert unbounded == []


@pytest.mark.parametrize("value", [2**70, 10**299, -(2**70), 1e300, float("inf"), float("nan")])
def test_absurd_numbers_are_refused_by_their_field(value):
    for path, _ in of_specs():
        kind, _, field = path.partition(".")
        if kind != "pretrain" or "[" in field or ".dataset." in f".{field}" or field == "model.in_chans":
            continue
        *parents, last = field.split(".")
        document: dict[str, Any] = dict(SPEC)
        node = document
        for parent in parents:
            node[parent] = dict(node.get(parent, {}))
            node = node[parent]
        node[last] = value
        with pytest.raises(SpecError) as caught:
            parse_spec(document)
        assert field in {each.field for each in caught.value.problems}, (field, str(caught.value))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"optimization": {"epochs": 2**70}}, "optimization.epochs"),
        ({"model": {"depth": 2**31}}, "model.depth"),
        ({"model": {"embed_dim": 2**16, "depth": 1024, "num_heads": 16}}, "model.embed_dim"),
        ({"model": {"img_size": 2**14, "patch_size": 16}}, "model.patch_size"),
        ({"checkpoint": {"keep": 2**63}}, "checkpoint.keep"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/plan"])
def test_the_api_refuses_them_with_the_field(api, path, fields, field):
    found = problem(api.post(path, json=spec_with(**fields)), 422, "spec_invalid")["problems"]
    assert [each["field"] for each in found] == [field], "and no field that follows from it"


@pytest.mark.parametrize(
    ("space", "field"),
    [
        ({"seed": {"type": "int", "low": 0, "high": 2**70}}, "high"),
        ({"optimization.base_lr": {"type": "float", "low": 0, "high": 1, "step": 1e-300}}, "step"),
        ({"optimization.base_lr": {"type": "float", "low": 0, "high": 1e300}}, "high"),
    ],
)
def test_a_space_has_bounds_too(api, space, field):
    body = {"kind": "search", "base": SPEC, "space": space}
    (found,) = problem(api.post("/v1/jobs/plan", json=body), 422, "spec_invalid")["problems"]
    assert found["field"].endswith(field)


def test_a_point_with_a_number_beyond_all_floats_is_refused(api, searches):
    path = f"/v1/searches/{searches.add()}/trials"
    for number in ("9" * 290, "9" * 309, "9" * 4000):
        body = json.dumps({"points": [{"optimization.base_lr": "here"}]}).replace('"here"', number)
        answer = api.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text


def test_the_form_says_the_bounds():
    fields = {each.path: each.hint for group in groups("search", {}) for each in group.fields}
    fields |= {each.path: each.hint for group in groups("pretrain", {}) for each in group.fields}
    assert fields["optimization.epochs"].endswith("From 1 to 1000000.")
    assert fields["optimization.base_lr"].endswith("Above 0 to 1000000.0.")
    assert "From 1 to 16384." in fields["model.img_size"]
    assert fields["budget.trials"].endswith("From 1 to 10000.")


def test_never_and_all_can_be_said_with_large_numbers():
    """As people have written them before there were bounds: neither field has a null."""
    large = 10**9
    checkpoint, evaluation = {"every_epochs": large, "keep": large}, {"every_epochs": large}
    base = SPEC | {"checkpoint": checkpoint, "evaluation": evaluation}
    parse_spec(base)
    space = {"optimization.base_lr": {"type": "float", "low": 1e-4, "high": 1e-2}}
    scheduler = {"name": "none"}
    parse_spec({"kind": "search", "base": base, "space": space, "scheduler": scheduler, "keep": large})


def test_what_is_offered_stays_valid():
    for preset in PRESETS:
        parse_spec(SPEC | {"model": {"preset": preset}})
    base = parse_spec(SPEC | {"evaluation": {"every_epochs": 5}}).model_dump(mode="json")
    for name in READY:
        parse_spec(ready_search(name, base))

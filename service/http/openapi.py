"""An API's description, `/openapi.json`: the routes as FastAPI reads them, with what each can refuse and examples.

What FastAPI cannot read from the routes is handed in as a `Description`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.http.schemas import View

PROBLEM_TYPE: Final = "application/problem+json"
SCHEMAS: Final = "#/components/schemas/"

CODES: Final[dict[str, tuple[int, str]]] = {
    "bad_request": (400, "the body cannot be read"),
    "unauthorized": (401, "no token, or one that is not known"),
    "not_found": (404, "the path is none of these"),
    "body_too_large": (413, "the body is longer than `RCMAE_BODY_LIMIT_BYTES`"),
    "parameter_invalid": (422, "a parameter's value is wrong; `problems` says which"),
    "json_invalid": (422, "the body is not JSON"),
    "body_invalid": (422, "there is no body, or it is no JSON object"),
    "spec_invalid": (422, "a field of the body is wrong; `problems` says which, and the remedy"),
    "unavailable": (503, "the database or another part cannot be reached now: try again shortly"),
}
"""Status of each error that requests and bodies bring by themselves, and when it comes."""

EVERYWHERE: Final = frozenset({"method_not_allowed", "internal_error"})
"""Errors of any request, which a description tells of once."""
WITH_TOKEN: Final = ("unauthorized", "unavailable")
WITH_PARAMETERS: Final = ("parameter_invalid",)
WITH_BODY: Final = ("bad_request", "body_too_large", "json_invalid", "body_invalid", "spec_invalid")

ETAG: Final = {
    "ETag": {"description": "Of this content, in quotes; of a backbone its sha256.", "schema": {"type": "string"}}
}
RANGE: Final = {"Content-Range": {"description": "`bytes <first>-<last>/<size>`.", "schema": {"type": "string"}}}
RANGE_HEADERS: Final = {
    "Range": "One part of the file: `bytes=<first>-<last>`, `bytes=<first>-` or `bytes=-<count>`. Others are ignored.",
    "If-Range": "The `ETag` of which the part is wanted; of another file, all comes.",
    "If-None-Match": "The `ETag` that is there already: then the answer is 304, without a body.",
}


@dataclass(frozen=True)
class Operation:
    """What a route's own code does not say."""

    id: str
    """Its name in clients."""
    refusals: tuple[str, ...] = ()
    """Codes beside those that its token, parameters and body bring."""
    answers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Answers that are no JSON, more than one, or with headers of their own."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the request that the route reads by itself."""


def file_answers(content: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The answers of a route that sends a file with `service.http.ranges`."""
    body = {"content": content} if content else {}
    return {
        200: {"description": "The whole file.", "headers": ETAG} | body,
        206: {"description": "The part that `Range` asks for.", "headers": ETAG | RANGE} | body,
        304: {"description": "It is what `If-None-Match` names.", "headers": ETAG},
        416: {"description": "The file has no such part.", "headers": ETAG | RANGE},
    }


@dataclass(frozen=True)
class Description:
    """What an application's own code does not say of it."""

    info: Mapping[str, Any]
    tags: Mapping[str, str]
    codes: Mapping[str, tuple[int, str]]
    """Status of each error, and when it comes."""
    operations: Mapping[str, Operation]
    """By method and path, such as `GET /v1/jobs`."""
    bodies: Mapping[str, Mapping[str, Any]]
    """Examples, by the operation's id."""
    parameters: Mapping[str, Any]
    """Examples, by the parameter's name."""
    operation_parameters: Mapping[str, Mapping[str, Any]]
    """Examples of the parameters of single operations, by the operation's id."""
    answers: Mapping[str, Any]
    """Examples, by the schema's name."""


class FieldProblem(View):
    """One thing wrong with what was sent."""

    field: str
    """As people write it, for example `optimization.epochs`; empty for the whole body."""
    pointer: str
    """The same place as a JSON pointer (RFC 6901); empty for parameters."""
    value: Any
    """What was given there."""
    message: str
    """What is wrong, and what to do about it."""


class Problem(View):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    """For programs: it stays."""
    detail: str
    """For people: what is wrong, and what to do about it."""
    problems: list[FieldProblem]
    """Of specs, bodies and parameters: each wrong field."""
    request_id: str | None
    """Finds the request in the service's log."""


def install(app: FastAPI, description: Description) -> None:
    """Let an application describe itself so."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, description)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def describe(app: FastAPI, description: Description) -> dict[str, Any]:
    """The whole document; raises `KeyError` for a route that has no row."""
    found = get_openapi(
        **description.info,
        servers=[{"url": "/", "description": "This server"}],
        tags=[{"name": name, "description": text} for name, text in description.tags.items()],
        routes=app.routes,
    )
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            _complete(description, operation, method.upper(), description.operations[f"{method.upper()} {path}"])
    found = _renamed(found)
    components = found["components"]
    problem = Problem.model_json_schema(ref_template=f"{SCHEMAS}{{model}}")
    components["schemas"] |= problem.pop("$defs") | {"Problem": problem}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for name, example in description.answers.items():
        components["schemas"][name]["examples"] = [example]
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": "A token's text."}}
    return found


def _complete(description: Description, operation: dict[str, Any], method: str, row: Operation) -> None:
    """Name, errors and examples of one operation."""
    operation["operationId"], operation["summary"] = row.id, row.id.replace("_", " ").capitalize()
    answers, body = operation["responses"], operation.get("requestBody")
    parameters = operation.setdefault("parameters", [])
    parameters += [_header(name, text) for name, text in row.headers.items()]
    answers.pop("422", None)
    if row.answers:
        (own,) = answers.values()
        answers.clear()
        for status, answer in row.answers.items():
            content = {"content": own["content"]} if status < 300 and "content" in own else {}
            answers[str(status)] = content | dict(answer)
    codes = list(row.refusals)
    if "security" in operation:
        operation["security"] = [{"token": []}]
        codes += WITH_TOKEN
    if body:
        codes += WITH_BODY
        body["content"]["application/json"]["examples"] = description.bodies[row.id]
    if parameters:
        codes += WITH_PARAMETERS
    if any(parameter["in"] == "path" for parameter in parameters):
        codes.append("not_found")
    for code in sorted(codes, key=lambda code: (description.codes[code][0], code)):
        _refuse(answers, code, description.codes[code], method)
    values = {**description.parameters, **description.operation_parameters.get(row.id, {})}
    for parameter in parameters:
        _show(parameter, values)


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


def _show(parameter: dict[str, Any], values: Mapping[str, Any]) -> None:
    """An example; and no null, which neither a path nor a query nor a header can say."""
    schema = parameter["schema"]
    if {"type": "null"} in schema.get("anyOf", []):
        (given,) = [kind for kind in schema.pop("anyOf") if kind != {"type": "null"}]
        parameter["schema"] = given | schema
    if parameter["in"] == "header":
        parameter["name"] = "-".join(part.capitalize() for part in parameter["name"].split("-"))
    if parameter["name"] in values:
        parameter["example"] = values[parameter["name"]]


def _refuse(answers: dict[str, Any], code: str, meaning: tuple[int, str], method: str) -> None:
    """Add one error to the answer of its status; a HEAD request is answered without a body."""
    status, when = meaning
    answer = answers.setdefault(str(status), {"description": HTTPStatus(status).phrase})
    answer["description"] += f"\n- `{code}`: {when}."
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}}
    if method == "HEAD":
        return
    schema = {"properties": {"status": {"const": status}, "code": {"enum": []}}}
    content = answer.setdefault("content", {}).setdefault(
        PROBLEM_TYPE, {"schema": {"allOf": [{"$ref": f"{SCHEMAS}Problem"}, schema]}}
    )
    content["schema"]["allOf"][1]["properties"]["code"]["enum"].append(code)


NAMES: Final[tuple[tuple[str, str], ...]] = (
    (r"^Page_(\w+?)(View)?_$", r"\1Page"),
    (r"^(\w+)View$", r"\1"),
)
"""FastAPI's names of schemas, and what clients are to call them."""


def _renamed(document: dict[str, Any]) -> dict[str, Any]:
    names = {}
    for name in document["components"]["schemas"]:
        new = name
        for pattern, replacement in NAMES:
            new = re.sub(pattern, replacement, new)
        names[name] = new
    document["components"]["schemas"] = {
        names[name]: schema | {"title": names[name]} for name, schema in document["components"]["schemas"].items()
    }
    replaced: dict[str, Any] = _walk(document, lambda ref: SCHEMAS + names[ref.removeprefix(SCHEMAS)])
    return replaced


def _walk(node: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {
            key: rename(value) if key == "$ref" and value.removeprefix(SCHEMAS) != "Problem" else _walk(value, rename)
            for key, value in node.items()
        }
    return [_walk(item, rename) for item in node] if isinstance(node, list) else node

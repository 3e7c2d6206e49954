"""The OpenAPI document, `/openapi.json`: FastAPI's reading of the routes, completed with error codes and examples.

A `Description` supplies what FastAPI cannot read from the routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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
    "unauthorized": (401, "the request has no token, or an unknown one"),
    "not_found": (404, "no route has this path"),
    "body_too_large": (413, "the body is longer than `RCMAE_BODY_LIMIT_BYTES`"),
    "parameter_invalid": (
        422,
        "a parameter is unknown, given twice, or has an invalid value; `problems` says which",
    ),
    "json_invalid": (422, "the body is not JSON, or has a field twice, or numbers or levels beyond all bounds"),
    "body_invalid": (422, "the body is missing, or not a JSON object"),
    "spec_invalid": (422, "a field of the body is invalid; `problems` says which, and the remedy"),
    "rate_limited": (429, "too many requests without a valid token came from this address; see `Retry-After`"),
    "unavailable": (503, "the database or another dependency is unreachable: try again shortly"),
}
"""The status and the cause of each error that the routes have in common."""

EVERYWHERE: Final = frozenset({"method_not_allowed", "internal_error", "host_not_allowed"})
"""Errors that any request can get. The document's introduction describes them once."""
WITH_TOKEN: Final = ("unauthorized", "rate_limited", "unavailable")
ANY_REQUEST: Final = ("parameter_invalid",)
"""An operation without parameters refuses all of them."""
WITH_BODY: Final = ("bad_request", "body_too_large", "json_invalid", "body_invalid", "spec_invalid")

ETAG: Final = {
    "ETag": {
        "description": "Identifies the content, in quotes; for a backbone's file it is the sha256.",
        "schema": {"type": "string"},
    }
}
RANGE: Final = {"Content-Range": {"description": "`bytes <first>-<last>/<size>`.", "schema": {"type": "string"}}}
RANGE_HEADERS: Final = {
    "Range": "One part of the file: `bytes=<first>-<last>`, `bytes=<first>-` or `bytes=-<count>`. Other forms are "
    "ignored.",
    "If-Range": "An `ETag`: if the file has another one, `Range` is ignored and the whole file is sent.",
    "If-None-Match": "The `ETag` of the copy you have: if it is current, the response is 304 without a body.",
}


@dataclass(frozen=True)
class Operation:
    """What a route's signature does not say."""

    id: str
    """The operation's name in generated clients."""
    refusals: tuple[str, ...] = ()
    """Error codes besides those that follow from its token, parameters and body."""
    answers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Responses by status, if there are several, or they are not JSON, or have headers of their own."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Request headers that the route reads itself, with their descriptions."""


def file_answers(content: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The responses of a route that sends a file with `service.http.ranges`."""
    body = {"content": content} if content else {}
    return {
        200: {"description": "The whole file.", "headers": ETAG} | body,
        206: {"description": "The requested range of the file.", "headers": ETAG | RANGE} | body,
        304: {"description": "The content matches `If-None-Match`.", "headers": ETAG},
        416: {"description": "The range lies outside the file.", "headers": ETAG | RANGE},
    }


@dataclass(frozen=True)
class Description:
    """What an application's routes do not say about its API."""

    info: Mapping[str, Any]
    tags: Mapping[str, str]
    codes: Mapping[str, tuple[int, str]]
    """The status and the cause of each error, by code."""
    operations: Mapping[str, Operation]
    """By method and path, such as `GET /v1/jobs`."""
    bodies: Mapping[str, Mapping[str, Any]]
    """Examples of request bodies, by operation id."""
    parameters: Mapping[str, Any]
    """Examples of parameters, by name."""
    operation_parameters: Mapping[str, Mapping[str, Any]]
    """Examples of parameters that differ for one operation, by operation id."""
    answers: Mapping[str, Any]
    """Examples of responses, by schema name."""
    scopes: Mapping[str, str]
    """What each scope allows, by its name."""
    requirement: Callable[[Sequence[str]], tuple[str, Sequence[str]]]
    """A sentence about the scopes that a route needs, and the roles that have them all."""


class FieldProblem(View):
    """One invalid field or parameter of a request."""

    field: str
    """The field's dotted path, for example `optimization.epochs`; empty for the whole body."""
    pointer: str
    """The same field as a JSON pointer (RFC 6901); empty for parameters."""
    value: Any
    """The value that was sent."""
    message: str
    """What is wrong, and what to do about it."""


class Problem(View):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    """A stable code for programs."""
    detail: str
    """For people: what is wrong, and what to do about it."""
    problems: list[FieldProblem]
    """Each invalid field of a spec or body, or each invalid parameter."""
    request_id: str | None
    """The request's id in the service's log."""


def install(app: FastAPI, description: Description) -> None:
    """Make an application serve the document that `describe` builds."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, description)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def describe(app: FastAPI, description: Description) -> dict[str, Any]:
    """The whole OpenAPI document. Raises `KeyError` for a route that ``description.operations`` lacks."""
    document = get_openapi(
        **description.info,
        servers=[{"url": "/", "description": "This server"}],
        tags=[{"name": name, "description": text} for name, text in description.tags.items()],
        routes=app.routes,
    )
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(description, operation, method.upper(), description.operations[f"{method.upper()} {path}"])
    document = _with_renamed_schemas(document)
    components = document["components"]
    problem = Problem.model_json_schema(ref_template=f"{SCHEMAS}{{model}}")
    components["schemas"] |= problem.pop("$defs") | {"Problem": problem}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for name, example in description.answers.items():
        components["schemas"][name]["examples"] = [example]
    token = {"type": "http", "scheme": "bearer", "description": "A token's text.", "x-scopes": dict(description.scopes)}
    components["securitySchemes"] = {"token": token}
    return document


def _complete(description: Description, operation: dict[str, Any], method: str, row: Operation) -> None:
    """Add an operation's name, headers, errors and examples."""
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
    codes = [*row.refusals, *ANY_REQUEST]
    if "security" in operation:
        scopes = [str(scope) for need in operation["security"] for each in need.values() for scope in each]
        text, roles = description.requirement(scopes)
        operation["description"] += f"\n\n{text}"
        operation["security"], operation["x-roles"] = [{"token": scopes}], list(roles)
        codes += WITH_TOKEN
    if body:
        codes += WITH_BODY
        body["content"]["application/json"]["examples"] = description.bodies[row.id]
    if any(parameter["in"] == "path" for parameter in parameters):
        codes.append("not_found")
    for code in sorted(codes, key=lambda code: (description.codes[code][0], code)):
        _add_error(answers, code, description.codes[code], method)
    examples = {**description.parameters, **description.operation_parameters.get(row.id, {})}
    for parameter in parameters:
        _complete_parameter(parameter, examples)


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


def _complete_parameter(parameter: dict[str, Any], examples: Mapping[str, Any]) -> None:
    """Add an example, and remove null from the schema: no path, query or header can express it."""
    schema = parameter["schema"]
    if {"type": "null"} in schema.get("anyOf", []):
        (not_null,) = [kind for kind in schema.pop("anyOf") if kind != {"type": "null"}]
        parameter["schema"] = not_null | schema
    if parameter["in"] == "header":
        parameter["name"] = "-".join(part.capitalize() for part in parameter["name"].split("-"))
    if parameter["name"] in examples:
        parameter["example"] = examples[parameter["name"]]


def _add_error(answers: dict[str, Any], code: str, meaning: tuple[int, str], method: str) -> None:
    """Add one error to the response of its status. The response to a HEAD request has no body."""
    status, when = meaning
    answer = answers.setdefault(str(status), {"description": HTTPStatus(status).phrase})
    answer["description"] += f"\n- `{code}`: {when}."
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}}
    if status == 429:
        answer["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
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
"""FastAPI's names of schemas, and their names in generated clients."""


def _with_renamed_schemas(document: dict[str, Any]) -> dict[str, Any]:
    names = {}
    for name in document["components"]["schemas"]:
        new = name
        for pattern, replacement in NAMES:
            new = re.sub(pattern, replacement, new)
        names[name] = new
    document["components"]["schemas"] = {
        names[name]: schema | {"title": names[name]} for name, schema in document["components"]["schemas"].items()
    }
    renamed: dict[str, Any] = _rename_references(document, lambda ref: SCHEMAS + names[ref.removeprefix(SCHEMAS)])
    return renamed


def _rename_references(node: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {
            key: rename(value)
            if key == "$ref" and value.removeprefix(SCHEMAS) != "Problem"
            else _rename_references(value, rename)
            for key, value in node.items()
        }
    return [_rename_references(item, rename) for item in node] if isinstance(node, list) else node

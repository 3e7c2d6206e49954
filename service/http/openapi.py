"""The API's description, `/openapi.json`: the routes as FastAPI reads them, with what each can refuse and examples.

`OPERATIONS` has one row a route and `CODES` one an error; nothing else has to be said about a new route. People make
clients out of this document, so the names in it stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import examples
from service.http.schemas import View

PROBLEM_TYPE: Final = "application/problem+json"
SCHEMAS: Final = "#/components/schemas/"

DESCRIPTION: Final = """
Pretrain vision backbones with RC-MAE on your own machines, and pull what was pretrained.

- **Tokens.** Requests below `/v1` and `/hf` carry `Authorization: Bearer <token>`.
- **Errors** are `application/problem+json` (RFC 9457) with a `code` that stays and a `detail` for people; those of a
  spec list each field with its JSON pointer in `problems`. Each operation lists the codes it answers with. Beside them
  there are `method_not_allowed` (405) and `internal_error` (500).
- **Lists** are `{items, next_cursor}`: give `next_cursor` as `cursor` for the items that follow.
- **Repeating.** Reads may be repeated, and so may submitting and adding trials, with the same `Idempotency-Key`. After
  503 try again shortly: nothing was changed.
- **Times** are UTC. Fields may be added to answers; unknown ones in requests are refused.
- Every answer has `X-Request-ID`: the one that was sent, or a new one. It is also in the service's log.
"""

TAGS: Final = {
    "jobs": "Submitting, watching and steering jobs.",
    "searches": "Hyperparameter searches: their trials, budgets and figures. A search is a job of kind `search` too.",
    "backbones": "What was pretrained: registered versions and their files.",
    "hub": "The same by the Hugging Face Hub's protocol, to read: `HF_ENDPOINT=<this server>/hf`.",
    "cluster": "What the machines have, who uses it, and who waits for it.",
    "access": "Tokens, and who did what.",
    "health": "For load balancers and monitoring. No token is needed.",
}

CODES: Final[dict[str, tuple[int, str]]] = {
    "bad_request": (400, "the body cannot be read"),
    "unauthorized": (401, "no token, or one that is not known"),
    "forbidden": (403, "the token's role does not allow it, or the job is somebody else's"),
    "not_found": (404, "the path is none of these"),
    "token_not_found": (404, "there is no such token, or it is somebody else's"),
    "job_not_found": (404, "there is no such job"),
    "trial_not_found": (404, "the search has no such trial"),
    "log_not_found": (404, "this attempt has no log of this source"),
    "image_not_found": (404, "the job, or the trial, has no such picture"),
    "backbone_not_found": (404, "no such backbone is registered"),
    "version_not_found": (404, "the backbone has no such version"),
    "file_not_found": (404, "the version has no such file"),
    "format_not_found": (404, "the version has no such format"),
    "alias_not_found": (404, "the backbone has no such alias"),
    "repo_not_found": (404, "there is no such repository; `X-Error-Code: RepoNotFound`"),
    "revision_not_found": (404, "the repository has no such revision; `X-Error-Code: RevisionNotFound`"),
    "entry_not_found": (404, "the revision has no such file; `X-Error-Code: EntryNotFound`"),
    "artifacts_not_here": (404, "its files lie outside the artifact root, which is another now"),
    "not_allowed_in_state": (409, "the state of the job, or of the trial, does not allow it"),
    "budget_spent": (409, "the search's budget has no room for so many trials: say `beyond_budget`"),
    "trial_not_settled": (409, "the trial's values are no spec, or not all known before it begins"),
    "token_ended": (409, "the token has ended already"),
    "last_admin": (409, "it is the last token of an admin that is left"),
    "not_for_this_kind": (409, "the job is of another kind"),
    "backbones_would_go": (409, "registered versions would be deleted: say `with_backbones=true`"),
    "version_has_alias": (409, "an alias stands for the version: let it stand for another one, or remove it, first"),
    "body_too_large": (413, "the body is longer than `RCMAE_BODY_LIMIT_BYTES`"),
    "parameter_invalid": (422, "a parameter's value is wrong; `problems` says which"),
    "json_invalid": (422, "the body is not JSON"),
    "body_invalid": (422, "there is no body, or it is no JSON object"),
    "spec_invalid": (422, "a field of the body is wrong; `problems` says which, and the remedy"),
    "idempotency_key_reused": (422, "the key was used for another spec, or for other trials"),
    "unavailable": (503, "the database or another part cannot be reached now: try again shortly"),
}
"""Status of each error, and when it comes."""

EVERYWHERE: Final = frozenset({"method_not_allowed", "internal_error"})
"""Errors of any request, which `DESCRIPTION` tells of."""
WITH_TOKEN: Final = ("unauthorized", "unavailable")
WITH_PARAMETERS: Final = ("parameter_invalid",)
WITH_BODY: Final = ("bad_request", "body_too_large", "json_invalid", "body_invalid", "spec_invalid")

PNG: Final = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
TAR: Final = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
FILE: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
PROMETHEUS: Final = {media: {"schema": {"type": "string"}} for media in ("text/plain", "application/openmetrics-text")}
EVENT: Final = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "description": "`job`, `event`, `metrics`, `log` or `end`; of all jobs `jobs`."},
        "id": {"type": "string", "description": "Sent as `Last-Event-ID`, it goes on from there."},
        "data": {"type": "string", "description": "JSON."},
    },
}
EVENTS: Final = {"text/event-stream": {"schema": EVENT}}
LINES: Final = {"application/x-ndjson": {"schema": {"type": "string"}}}
ETAG: Final = {
    "ETag": {"description": "Of this content, in quotes; of a backbone its sha256.", "schema": {"type": "string"}}
}
RANGE: Final = {"Content-Range": {"description": "`bytes <first>-<last>/<size>`.", "schema": {"type": "string"}}}
PART: Final = {
    "Range": "One part of the file: `bytes=<first>-<last>`, `bytes=<first>-` or `bytes=-<count>`. Others are ignored.",
    "If-Range": "The `ETag` of which the part is wanted; of another file, all comes.",
    "If-None-Match": "The `ETag` that is there already: then the answer is 304, without a body.",
}
CSV: Final = {"text/csv": {"schema": {"type": "string"}}}
LOCATION: Final = {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}


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


def _file(content: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    body = {"content": content} if content else {}
    return {
        200: {"description": "The whole file.", "headers": ETAG} | body,
        206: {"description": "The part that `Range` asks for.", "headers": ETAG | RANGE} | body,
        304: {"description": "It is what `If-None-Match` names.", "headers": ETAG},
        416: {"description": "The file has no such part.", "headers": ETAG | RANGE},
    }


def _linked(content: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """A file that may be had elsewhere."""
    link = {"Location": {"description": "A signed link into S3.", "schema": {"type": "string"}}}
    sent_on = {"description": "With `RCMAE_PRESIGNED_DOWNLOADS`: where the file is.", "headers": ETAG | link}
    return _file(content) | {302: sent_on}


CONTROL: Final = ("forbidden", "job_not_found", "not_allowed_in_state")
LOG: Final = ("job_not_found", "log_not_found", "artifacts_not_here")
SEARCH: Final = ("job_not_found", "not_for_this_kind")
TRIAL: Final = (*SEARCH, "trial_not_found")
VERSION: Final = ("version_not_found",)
REPO: Final = ("repo_not_found", "revision_not_found")
ENTRY: Final = (*REPO, "entry_not_found")

OPERATIONS: Final[dict[str, Operation]] = {
    "POST /v1/jobs": Operation(
        "submit_job",
        ("forbidden", "idempotency_key_reused"),
        {
            200: {"description": "The job that this key has made before.", "headers": LOCATION},
            201: {"description": "A new job.", "headers": LOCATION},
        },
    ),
    "POST /v1/jobs/plan": Operation("plan_job"),
    "GET /v1/jobs": Operation("list_jobs"),
    "GET /v1/jobs/{job_id}": Operation("get_job", ("job_not_found",)),
    "PATCH /v1/jobs/{job_id}": Operation("change_job", CONTROL),
    "DELETE /v1/jobs/{job_id}": Operation(
        "delete_job", (*CONTROL, "artifacts_not_here", "backbones_would_go", "version_has_alias")
    ),
    "GET /v1/jobs/{job_id}/spec": Operation("get_job_spec", ("job_not_found",)),
    "POST /v1/jobs/{job_id}/cancel": Operation("cancel_job", CONTROL),
    "POST /v1/jobs/{job_id}/pause": Operation("pause_job", CONTROL),
    "POST /v1/jobs/{job_id}/resume": Operation("resume_job", CONTROL),
    "POST /v1/jobs/{job_id}/retry": Operation("retry_job", CONTROL),
    "POST /v1/jobs/{job_id}/stop": Operation("stop_job", (*CONTROL, "not_for_this_kind")),
    "GET /v1/jobs/{job_id}/events": Operation("list_job_events", ("job_not_found",)),
    "GET /v1/jobs/{job_id}/attempts": Operation("list_job_attempts", ("job_not_found",)),
    "GET /v1/jobs/{job_id}/logs": Operation("list_job_logs", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/logs/{attempt}/{source}": Operation("download_job_log", LOG, _file(LINES), PART),
    "HEAD /v1/jobs/{job_id}/logs/{attempt}/{source}": Operation("check_job_log", LOG, _file({}), PART),
    "GET /v1/jobs/{job_id}/stream": Operation(
        "follow_job", ("job_not_found",), {200: {"description": "Server-sent events.", "content": EVENTS}}
    ),
    "GET /v1/stream": Operation("hear_jobs", (), {200: {"description": "Server-sent events.", "content": EVENTS}}),
    "GET /v1/jobs/{job_id}/metrics": Operation("get_job_metrics", ("job_not_found",)),
    "GET /v1/metrics": Operation("compare_metrics", ("job_not_found",)),
    "GET /v1/jobs/{job_id}/checkpoints": Operation("list_job_checkpoints", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/images": Operation("list_job_images", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/images/{name}": Operation(
        "get_job_image",
        ("job_not_found", "image_not_found", "artifacts_not_here"),
        {200: {"description": "The picture.", "content": PNG}},
    ),
    "GET /v1/searches/{search_id}": Operation("get_search", SEARCH),
    "PATCH /v1/searches/{search_id}": Operation("change_search", ("forbidden", *SEARCH)),
    "GET /v1/searches/{search_id}/trials": Operation("list_trials", SEARCH),
    "POST /v1/searches/{search_id}/trials": Operation(
        "add_trials",
        ("forbidden", *SEARCH, "not_allowed_in_state", "budget_spent", "idempotency_key_reused"),
        {
            200: {"description": "The trials that this key has added before."},
            201: {"description": "Trials that wait."},
        },
    ),
    "GET /v1/searches/{search_id}/trials.csv": Operation(
        "download_trials", SEARCH, {200: {"description": "A header, and one line a trial.", "content": CSV}}
    ),
    "GET /v1/searches/{search_id}/trials/{number}": Operation("get_trial", TRIAL),
    "POST /v1/searches/{search_id}/trials/{number}/stop": Operation(
        "stop_trial", ("forbidden", *TRIAL, "not_allowed_in_state")
    ),
    "POST /v1/searches/{search_id}/trials/{number}/retry": Operation(
        "retry_trial", ("forbidden", *TRIAL, "not_allowed_in_state")
    ),
    "POST /v1/searches/{search_id}/trials/{number}/promote": Operation(
        "promote_trial",
        ("forbidden", *TRIAL, "trial_not_settled"),
        {
            200: {"description": "The job that this promotion has made before.", "headers": LOCATION},
            201: {"description": "A new job.", "headers": LOCATION},
        },
    ),
    "GET /v1/searches/{search_id}/trials/{number}/logs": Operation("list_trial_logs", (*TRIAL, "artifacts_not_here")),
    "GET /v1/searches/{search_id}/trials/{number}/metrics": Operation("get_trial_metrics", TRIAL),
    "GET /v1/searches/{search_id}/trials/{number}/images": Operation(
        "list_trial_images", (*TRIAL, "artifacts_not_here")
    ),
    "GET /v1/searches/{search_id}/trials/{number}/images/{name}": Operation(
        "get_trial_image",
        (*TRIAL, "image_not_found", "artifacts_not_here"),
        {200: {"description": "The picture.", "content": PNG}},
    ),
    "GET /v1/searches/{search_id}/plots/{name}": Operation("get_search_plot", SEARCH),
    "GET /v1/backbones": Operation("list_backbones"),
    "GET /v1/backbones/{name}": Operation("get_backbone", ("backbone_not_found",)),
    "GET /v1/backbones/{name}/versions/{version}": Operation("get_backbone_version", VERSION),
    "GET /v1/backbones/{name}/versions/{version}/files/{path}": Operation(
        "download_backbone_file", (*VERSION, "file_not_found"), _linked(FILE), PART
    ),
    "HEAD /v1/backbones/{name}/versions/{version}/files/{path}": Operation(
        "check_backbone_file", (*VERSION, "file_not_found"), _file({}), PART
    ),
    "DELETE /v1/backbones/{name}/versions/{version}": Operation(
        "delete_backbone_version", ("forbidden", *VERSION, "version_has_alias")
    ),
    "GET /v1/backbones/{name}/versions/{version}/archive": Operation(
        "download_backbone_archive", (*VERSION, "file_not_found", "format_not_found"), _file(TAR), PART
    ),
    "HEAD /v1/backbones/{name}/versions/{version}/archive": Operation(
        "check_backbone_archive", (*VERSION, "file_not_found", "format_not_found"), _file({}), PART
    ),
    "PUT /v1/backbones/{name}/aliases/{alias}": Operation(
        "set_backbone_alias", ("forbidden", "backbone_not_found", *VERSION)
    ),
    "DELETE /v1/backbones/{name}/aliases/{alias}": Operation(
        "delete_backbone_alias", ("forbidden", "backbone_not_found", "alias_not_found")
    ),
    "GET /hf/{org}/{repo}/resolve/{revision}/{path}": Operation(
        "hub_download", (*ENTRY, "file_not_found"), _linked(FILE), PART
    ),
    "HEAD /hf/{org}/{repo}/resolve/{revision}/{path}": Operation(
        "hub_check", (*ENTRY, "file_not_found"), _linked({}), PART
    ),
    "GET /hf/api/models/{org}/{repo}": Operation("hub_model", REPO),
    "GET /hf/api/models/{org}/{repo}/revision/{revision}": Operation("hub_model_at", REPO),
    "GET /hf/api/models/{org}/{repo}/tree/{revision}": Operation("hub_tree", REPO),
    "GET /hf/api/models/{org}/{repo}/tree/{revision}/{path}": Operation("hub_tree_below", ENTRY),
    "GET /v1/cluster": Operation("get_cluster"),
    "GET /v1/tokens": Operation("list_tokens", ("forbidden",)),
    "POST /v1/tokens": Operation("create_token", ("forbidden",)),
    "POST /v1/tokens/{token_id}/rotate": Operation("rotate_token", ("forbidden", "token_not_found", "token_ended")),
    "DELETE /v1/tokens/{token_id}": Operation("revoke_token", ("forbidden", "token_not_found", "last_admin")),
    "GET /v1/audit": Operation("list_audit", ("forbidden",)),
    "GET /metrics": Operation("get_metrics", (), {200: {"description": "The metrics.", "content": PROMETHEUS}}),
    "GET /healthz": Operation("get_health"),
    "GET /readyz": Operation("get_readiness"),
}
"""One row a route."""


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


def install(app: FastAPI) -> None:
    """Let an application describe itself so."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document; raises `KeyError` for a route that has no row."""
    found = get_openapi(
        title="rcmae",
        version=version("rcmae"),
        summary="Self-hosted pretraining of vision backbones",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/", "description": "This server"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        routes=app.routes,
    )
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            _complete(operation, method.upper(), OPERATIONS[f"{method.upper()} {path}"])
    found = _renamed(found)
    components = found["components"]
    problem = Problem.model_json_schema(ref_template=f"{SCHEMAS}{{model}}")
    components["schemas"] |= problem.pop("$defs") | {"Problem": problem}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for name, example in examples.ANSWERS.items():
        components["schemas"][name]["examples"] = [example]
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": "A token's text."}}
    return found


def _complete(operation: dict[str, Any], method: str, row: Operation) -> None:
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
        body["content"]["application/json"]["examples"] = examples.BODIES[row.id]
    if parameters:
        codes += WITH_PARAMETERS
    if any(parameter["in"] == "path" for parameter in parameters):
        codes.append("not_found")
    for code in sorted(codes, key=lambda code: (CODES[code][0], code)):
        _refuse(answers, code, method)
    values = examples.PARAMETERS | examples.OPERATION_PARAMETERS.get(row.id, {})
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


def _refuse(answers: dict[str, Any], code: str, method: str) -> None:
    """Add one error to the answer of its status; a HEAD request is answered without a body."""
    status, when = CODES[code]
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

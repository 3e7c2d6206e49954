"""Errors of the API: `application/problem+json` with a stable code (RFC 9457)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from service.adapters.storage import OutsideRoot, StorageUnreachable
from service.db import DatabaseUnreachable
from service.jobs.schemas import PatchBody, ResumeBody, RetryBody
from trainer.spec.base import Problem, SpecError, problems
from trainer.spec.pretrain import PretrainSpec

log = structlog.get_logger()

REQUEST_ID = "X-Request-ID"
BODIES = {"resume": ResumeBody, "retry": RetryBody}
"""What a body is, by the last part of the path; elsewhere it is a spec."""


class ApiProblem(Exception):
    """An answer that is not the wanted one."""

    def __init__(self, status: int, code: str, detail: str, found: tuple[Problem, ...] = ()) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.problems = status, code, detail, found


def not_found(what: str, name: str) -> ApiProblem:
    return ApiProblem(404, f"{what}_not_found", f"there is no {what} {name!r}")


def unavailable(what: str, error: object) -> ApiProblem:
    return ApiProblem(503, "unavailable", f"{what} cannot be reached now: {error}. Try again shortly")


def spec_problem(found: list[Problem] | tuple[Problem, ...]) -> ApiProblem:
    count = len(found)
    detail = "; ".join(str(problem) for problem in found[:3]) + (f"; and {count - 3} more" if count > 3 else "")
    return ApiProblem(422, "spec_invalid", detail, tuple(found))


TOLD: dict[type[Exception], Callable[[Any], ApiProblem]] = {
    ApiProblem: lambda error: error,
    SpecError: lambda error: spec_problem(error.problems),
    StorageUnreachable: lambda error: unavailable("the artifact storage", error),
    DatabaseUnreachable: lambda error: unavailable("the database", error),
    OutsideRoot: lambda error: ApiProblem(
        404, "artifacts_not_here", f"{error}: it was another when this was made, and files elsewhere are never served"
    ),
    DataError: lambda error: ApiProblem(
        422, "parameter_invalid", f"a value in the request is none that the database can hold: {error.orig}"
    ),
}
"""What an exception of ours says to people."""


def _handler(told: Callable[[Any], ApiProblem]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        return _refuse(request, told(error))

    return handle


def _refuse(request: Request, problem: ApiProblem) -> Response:
    return _answer(request, problem.status, problem.code, problem.detail, problem.problems)


def install(app: FastAPI) -> None:
    """Request ids and the error handlers."""

    @app.middleware("http")
    async def request_id(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get(REQUEST_ID, "")
        request.state.id = given if 0 < len(given) <= 64 and given.isprintable() else uuid.uuid4().hex
        try:
            response = await go_on(request)
        except Exception:
            # Here and not in a handler: Starlette's own handler of last resort runs outside this middleware.
            log.exception("request_failed", method=request.method, path=request.url.path, request_id=request.state.id)
            response = _answer(request, 500, "internal_error", "something went wrong in the service; its log has more")
        response.headers[REQUEST_ID] = request.state.id
        return response

    for kind, told in TOLD.items():
        app.add_exception_handler(kind, _handler(told))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refuse(request, _validation_problem(request, error))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return _answer(request, error.status_code, code, detail, headers=error.headers)


def _validation_problem(request: Request, error: RequestValidationError) -> ApiProblem:
    errors: Any = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiProblem(422, "json_invalid", f"the body is not JSON: {first['ctx']['error']}")
    if first["loc"][0] == "body":
        verb = request.url.path.rpartition("/")[2]
        model = PatchBody if request.method == "PATCH" else BODIES.get(verb, PretrainSpec)
        if first["loc"] == ("body",):
            return ApiProblem(422, "body_invalid", f"the body: {first['msg']} (send application/json)")
        return spec_problem(problems(errors, model, skip=1))
    found = [Problem(str(e["loc"][-1]), "", e.get("input"), e["msg"].replace("Input should", "must")) for e in errors]
    return ApiProblem(422, "parameter_invalid", "; ".join(map(str, found)), tuple(found))


def _answer(
    request: Request,
    status: int,
    code: str,
    detail: str,
    found: tuple[Problem, ...] = (),
    headers: Any = None,
) -> Response:
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "problems": [problem.as_dict() for problem in found],
        "request_id": getattr(request.state, "id", None),
    }
    headers = dict(headers or {})
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    # Refused values are shown, also those that are no JSON: NaN as text, half a surrogate pair escaped.
    clean = json.loads(json.dumps(body), parse_constant=str)
    return Response(json.dumps(clean), status, headers, media_type="application/problem+json")

"""Errors of the API: `application/problem+json` with a stable code (RFC 9457)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from sqlalchemy.exc import DataError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.schemas import RotateBody, TokenBody
from service.adapters.storage import OutsideRoot, StorageUnreachable
from service.adapters.studies import StudiesUnreachable
from service.backbones.schemas import AliasBody
from service.db.database import DatabaseUnreachable
from service.jobs.schemas import PatchBody, ResumeBody, RetryBody
from service.searches.schemas import PointsBody, PromoteBody, SearchPatch
from trainer.spec.base import Problem, SpecError, problems
from trainer.spec.job import SPECS
from trainer.spec.masking import masked

log = structlog.get_logger()

REQUEST_ID = "X-Request-ID"
BODIES: dict[str, type[BaseModel]] = {
    "resume": ResumeBody,
    "retry": RetryBody,
    "tokens": TokenBody,
    "rotate": RotateBody,
    "trials": PointsBody,
    "promote": PromoteBody,
}
"""What a body is, by the last part of the path; elsewhere it is a spec."""
METHOD_BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("PATCH", "jobs"): PatchBody,
    ("PATCH", "searches"): SearchPatch,
    ("PUT", "backbones"): AliasBody,
}
"""What it is by the method and what stands below `/v1`."""
HUB_PATH: Final = "/hf/"
LONGEST_HEADER: Final = 1000
"""Characters of a message in a header."""
HUB_CODES: Final = {
    "unauthorized": "GatedRepo",
    "forbidden": "GatedRepo",
    "repo_not_found": "RepoNotFound",
    "not_found": "RepoNotFound",
    "revision_not_found": "RevisionNotFound",
    "entry_not_found": "EntryNotFound",
    "file_not_found": "EntryNotFound",
}
"""What an error is to clients of the hub's protocol. A missing token is a gate to them: of a repository that is not
found they say that its name is wrong."""


class ApiProblem(Exception):
    """An answer that is not the wanted one."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        found: tuple[Problem, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.problems, self.headers = status, code, detail, found, headers


def not_found(what: str, name: str) -> ApiProblem:
    return ApiProblem(404, f"{what}_not_found", f"there is no {what} {name!r}")


def unavailable(what: str, error: object) -> ApiProblem:
    return ApiProblem(503, "unavailable", f"{what} cannot be reached now: {error}. Try again shortly")


class BodyTooLarge(HTTPException):
    """A body that is not read to its end. FastAPI lets only errors of this kind through while it reads one."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request's body is longer than the {limit} bytes that are read here")


def spec_problem(found: list[Problem] | tuple[Problem, ...]) -> ApiProblem:
    count = len(found)
    detail = "; ".join(str(problem) for problem in found[:3]) + (f"; and {count - 3} more" if count > 3 else "")
    return ApiProblem(422, "spec_invalid", detail, tuple(found))


TOLD: dict[type[Exception], Callable[[Any], ApiProblem]] = {
    ApiProblem: lambda error: error,
    SpecError: lambda error: spec_problem(error.problems),
    StorageUnreachable: lambda error: unavailable("the artifact storage", error),
    DatabaseUnreachable: lambda error: unavailable("the database", error),
    StudiesUnreachable: lambda error: unavailable("the record of trials", error),
    OutsideRoot: lambda error: ApiProblem(
        404, "artifacts_not_here", f"{error}: it was another when this was made, and files elsewhere are never served"
    ),
    BodyTooLarge: lambda error: ApiProblem(413, "body_too_large", error.detail),
    DataError: lambda error: ApiProblem(
        422, "parameter_invalid", f"a value in the request is none that the database can hold: {error.orig}"
    ),
}
"""What an exception of ours says to people."""


def _handler(told: Callable[[Any], ApiProblem]) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        return answer(request, told(error))

    return handle


def answer(request: Request, problem: ApiProblem) -> Response:
    """A problem as it is sent."""
    return _answer(request, problem.status, problem.code, problem.detail, problem.problems, problem.headers)


class BodyLimit:
    """ASGI middleware, inside the one that gives requests their ids: refuses bodies that are too long.

    Where the length is told, before anything is read or done; else as soon as that much has come in. FastAPI's own
    `max_body_size` lets a route that needs no body do its work first, and does not answer with a problem.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """``limit`` is in bytes."""
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, taken = Request(scope), 0
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            problem = TOLD[BodyTooLarge](BodyTooLarge(self._limit))
            await answer(request, problem)(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, counted, send)


class RequestIds:
    """Gives every request an id, and an answer also where something broke."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, begun = Request(scope), False
        given = request.headers.get(REQUEST_ID, "")
        sane = 0 < len(given) <= 64 and given.isprintable() and masked(given) == given
        request.state.id = given if sane else uuid.uuid4().hex

        async def named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[REQUEST_ID] = request.state.id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request.state.id):
            try:
                await self._app(scope, receive, named)
            except Exception:
                # Here and not in a handler: Starlette's own handler of last resort runs outside this middleware.
                log.exception("request_failed", method=request.method, path=request.url.path)
                if begun:
                    raise  # the connection is cut: the client must not take what it has for all
                text = "something went wrong in the service; its log has more"
                await _answer(request, 500, "internal_error", text)(scope, receive, named)


def install(app: FastAPI, body_limit_bytes: int) -> None:
    """Request ids, the longest body, and the error handlers."""
    app.add_middleware(BodyLimit, limit=body_limit_bytes)
    app.add_middleware(RequestIds)

    for kind, told in TOLD.items():
        app.add_exception_handler(kind, _handler(told))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, validation_problem(request, error))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return _answer(request, 405, code, detail, headers={"Allow": ", ".join(_allowed(request))})
        return _answer(request, error.status_code, code, detail, headers=error.headers)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of a path: Starlette's own answer names those of the first alone."""
    routes = [route for route in iter_route_contexts(request.app.routes) if route.methods]
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes if route.path == path for method in route.methods or ()})


def validation_problem(request: Request, error: RequestValidationError) -> ApiProblem:
    errors: Any = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiProblem(422, "json_invalid", f"the body is not JSON: {first['ctx']['error']}")
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        given = first["ctx"].get("tag")
        text = f"must be one of: {', '.join(SPECS)}" if given else f"is required: one of {', '.join(SPECS)}"
        return spec_problem([Problem("kind", "/kind", given, text)])
    if first["loc"][0] == "body":
        _, _, domain, *rest = request.url.path.split("/")
        model = METHOD_BODIES.get((request.method, domain)) or BODIES.get([domain, *rest][-1])
        if first["loc"] == ("body",):
            return ApiProblem(422, "body_invalid", f"the body: {first['msg']} (send application/json)")
        if model is None:  # the kind stands before the place in the spec
            return spec_problem(problems(errors, SPECS[first["loc"][1]], skip=2))
        return spec_problem(problems(errors, model, skip=1))
    found = [
        # A header's value is not shown: it may be meant for others.
        Problem(
            str(e["loc"][-1]),
            "",
            None if e["loc"][0] == "header" else e.get("input"),
            e["msg"].replace("Input should", "must"),
        )
        for e in errors
    ]
    return ApiProblem(422, "parameter_invalid", "; ".join(map(str, found)), tuple(found))


def _hub_headers(code: str, detail: str) -> dict[str, str]:
    """What clients of the hub's protocol read of an error, and show."""
    hint = ". Set HF_TOKEN to a token of this service, or pass token=" if code == "unauthorized" else ""
    message = "".join(char if " " <= char <= "~" else "?" for char in f"{detail}{hint}")  # all that a header may hold
    return {"X-Error-Message": message[:LONGEST_HEADER]} | (
        {"X-Error-Code": HUB_CODES[code]} if code in HUB_CODES else {}
    )


def _answer(
    request: Request,
    status: int,
    code: str,
    detail: str,
    found: tuple[Problem, ...] = (),
    headers: Any = None,
) -> Response:
    request.state.code = code  # for the audit log
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": masked(detail),
        "problems": [problem.as_dict() for problem in found],
        "request_id": getattr(request.state, "id", None),
    }
    headers = dict(headers or {})
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if request.url.path.startswith(HUB_PATH):
        headers |= _hub_headers(code, body["detail"])
    # Refused values are shown, also those that are no JSON: NaN as text, half a surrogate pair escaped.
    clean = json.loads(json.dumps(body), parse_constant=str)
    return Response(json.dumps(clean), status, headers, media_type="application/problem+json")

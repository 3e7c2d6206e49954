"""What answers the errors of an application."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.http.limits import BodyLimit
from service.http.problems import ApiProblem, Problems, answer
from service.http.request_ids import RequestIds
from service.http.validation import validation_problem


def install(app: FastAPI, problems: Problems, body_limit_bytes: int) -> None:
    """Request ids, the longest body, and the error handlers."""
    app.state.problems = problems
    app.add_middleware(BodyLimit, limit=body_limit_bytes)
    app.add_middleware(RequestIds)

    async def known(request: Request, error: Exception) -> Response:
        return answer(request, problems.of(error))

    for kind in problems.exceptions:
        app.add_exception_handler(kind, known)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, validation_problem(request, error))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": ", ".join(_allowed(request))}
        return answer(request, ApiProblem(error.status_code, code, detail, headers=headers))


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of a path: Starlette's own answer has only those of the first route."""
    routes = [route for route in iter_route_contexts(request.app.routes) if route.methods]
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes if route.path == path for method in route.methods or ()})

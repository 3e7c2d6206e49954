"""Exception handlers that turn an application's errors into problem responses."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.http.limits import BodyLimit
from service.http.problems import ApiProblem, Problems, problem_response
from service.http.request_ids import RequestIds
from service.http.validation import validation_problem


def install(app: FastAPI, problems: Problems, body_limit_bytes: int) -> None:
    """Add request ids, the limit on request bodies (in bytes) and the exception handlers to an application."""
    app.state.problems = problems
    app.add_middleware(BodyLimit, limit=body_limit_bytes)
    app.add_middleware(RequestIds)

    async def handle_mapped(request: Request, error: Exception) -> Response:
        return problem_response(request, problems.of(error))

    for exception in problems.exceptions:
        app.add_exception_handler(exception, handle_mapped)

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
        return problem_response(request, validation_problem(request, error))

    @app.exception_handler(HTTPException)
    async def handle_http_exception(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": ", ".join(_allowed_methods(request))}
        return problem_response(request, ApiProblem(error.status_code, code, detail, headers=headers))


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes of a path. Starlette's own response lists only those of the first route."""
    routes = [route for route in iter_route_contexts(request.app.routes) if route.methods]
    path = next(route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in routes if route.path == path for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))

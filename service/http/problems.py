"""Errors of the API: `application/problem+json` with a stable code (RFC 9457).

The application decides which exception becomes which problem: it passes `Problems` to `service.http.handlers`, which
stores them in `app.state.problems`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response

from service.http.failures import Buckets, network_of
from trainer.spec.base import Problem, SpecError
from trainer.spec.masking import masked


class ApiProblem(Exception):
    """An error response: raise it, and the request is answered with it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        problems: tuple[Problem, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.problems, self.headers = status, code, detail, problems, headers


def not_found(what: str, name: str) -> ApiProblem:
    return ApiProblem(404, f"{what}_not_found", f"there is no {what} {name!r}")


def unavailable(dependency: str, error: object, retry_after_s: int = 2) -> ApiProblem:
    detail = f"{dependency} cannot be reached now: {error}. Try again shortly"
    return ApiProblem(503, "unavailable", detail, headers={"Retry-After": str(retry_after_s)})


def spec_problem(problems: list[Problem] | tuple[Problem, ...]) -> ApiProblem:
    """The 422 for invalid fields; its detail names the first three."""
    count = len(problems)
    detail = "; ".join(str(problem) for problem in problems[:3]) + (f"; and {count - 3} more" if count > 3 else "")
    return ApiProblem(422, "spec_invalid", detail, tuple(problems))


class Problems:
    """Maps exceptions to problems, and adds headers to the problems of paths with certain prefixes."""

    def __init__(
        self,
        by_exception: Mapping[type[Exception], Callable[[Any], ApiProblem]],
        headers_below: Mapping[str, Callable[[str, str], Mapping[str, str]]],
    ) -> None:
        """``headers_below`` has functions from a problem's code and detail to headers, by path prefix."""
        self._by_exception: dict[type, Callable[[Any], ApiProblem]] = {
            ApiProblem: lambda problem: problem,
            SpecError: lambda error: spec_problem(error.problems),
            **by_exception,
        }
        self._headers_below = headers_below

    @property
    def exceptions(self) -> tuple[type[Exception], ...]:
        """Every exception that maps to a problem, for use in `except`."""
        return tuple(self._by_exception)

    def of(self, error: Exception) -> ApiProblem:
        """The problem of an error, which must be one of `exceptions`."""
        kind = next(kind for kind in type(error).__mro__ if kind in self._by_exception)
        return self._by_exception[kind](error)

    def headers(self, path: str, code: str, detail: str) -> dict[str, str]:
        """The additional headers of a problem on a path."""
        added: dict[str, str] = {}
        for prefix, headers_of in self._headers_below.items():
            if path.startswith(prefix):
                added |= headers_of(code, detail)
        return added


def problems_of(request: Request) -> Problems:
    """The exception mapping of the application that handles a request."""
    problems: Problems = request.app.state.problems
    return problems


def limited(request: Request, problem: ApiProblem) -> ApiProblem:
    """A problem to respond with: a 401 becomes a 429 if the client's address has caused too many of them."""
    if problem.status != 401:
        return problem
    failures: Buckets = request.app.state.failures
    wait_s = failures.take(network_of(request.client.host if request.client else ""))
    if not wait_s:
        return problem
    seconds = math.ceil(wait_s)
    text = (
        f"too many requests without a valid token came from your address: try again in {seconds} s, "
        "or send a valid token, which is answered at once"
    )
    return ApiProblem(429, "rate_limited", text, headers={"Retry-After": str(seconds)})


def problem_response(request: Request, problem: ApiProblem) -> Response:
    """A problem as an HTTP response. It also stores the code in the request's state, for the audit log.

    A 401 becomes a 429 if too many came from the client's address.
    """
    problem = limited(request, problem)
    request.state.code = problem.code
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": masked(problem.detail),
        "problems": [each.as_dict() for each in problem.problems],
        "request_id": getattr(request.state, "id", None),
    }
    headers = dict(problem.headers or {})
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    headers |= problems_of(request).headers(request.url.path, problem.code, str(body["detail"]))
    # The body repeats refused values, including those that JSON cannot hold: NaN as text, lone surrogates escaped.
    clean = json.loads(json.dumps(body), parse_constant=str)
    return Response(json.dumps(clean), problem.status, headers, media_type="application/problem+json")

"""Errors of the API: `application/problem+json` with a stable code (RFC 9457).

Which exceptions of the layers above become which problem is the application's to say: it hands `Problems` to
`service.http.handlers`, and everything that answers finds them at `app.state.problems`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response

from trainer.spec.base import Problem, SpecError
from trainer.spec.masking import masked


class ApiProblem(Exception):
    """An error that a request is answered with."""

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


def spec_problem(found: list[Problem] | tuple[Problem, ...]) -> ApiProblem:
    count = len(found)
    detail = "; ".join(str(problem) for problem in found[:3]) + (f"; and {count - 3} more" if count > 3 else "")
    return ApiProblem(422, "spec_invalid", detail, tuple(found))


class Problems:
    """The problem that each exception is answered with, and headers that a part of the paths adds to its problems."""

    def __init__(
        self,
        by_exception: Mapping[type[Exception], Callable[[Any], ApiProblem]],
        headers_below: Mapping[str, Callable[[str, str], Mapping[str, str]]],
    ) -> None:
        """``headers_below`` has functions of a problem's code and detail, by the prefix of the paths they are for."""
        self._by_exception: dict[type, Callable[[Any], ApiProblem]] = {
            ApiProblem: lambda problem: problem,
            SpecError: lambda error: spec_problem(error.problems),
            **by_exception,
        }
        self._headers_below = headers_below

    @property
    def exceptions(self) -> tuple[type[Exception], ...]:
        """Every exception that has a problem, for `except`."""
        return tuple(self._by_exception)

    def of(self, error: Exception) -> ApiProblem:
        """The problem of one of `exceptions`."""
        kind = next(kind for kind in type(error).__mro__ if kind in self._by_exception)
        return self._by_exception[kind](error)

    def headers(self, path: str, code: str, detail: str) -> dict[str, str]:
        """What the path of a request adds to the headers of a problem."""
        added: dict[str, str] = {}
        for prefix, headers_of in self._headers_below.items():
            if path.startswith(prefix):
                added |= headers_of(code, detail)
        return added


def problems_of(request: Request) -> Problems:
    """Those of the application that answers a request."""
    problems: Problems = request.app.state.problems
    return problems


def answer(request: Request, problem: ApiProblem) -> Response:
    """A problem as it is sent; the audit log finds its code in the request's state."""
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
    # Refused values are shown, including those that JSON cannot hold: NaN as text, half a surrogate pair escaped.
    clean = json.loads(json.dumps(body), parse_constant=str)
    return Response(json.dumps(clean), problem.status, headers, media_type="application/problem+json")

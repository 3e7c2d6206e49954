"""The class of every route: what a request must keep to before its handler runs."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Final, TypeVar, get_args, get_origin

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from service.http import json_text
from service.http.problems import ApiProblem, spec_problem
from trainer.spec.base import Problem
from trainer.spec.text import misleading, misleading_texts, visible

Dependency = TypeVar("Dependency", bound=Callable[..., Any])

NAMED: Final = 5
"""Most faults that one error names."""
LONGEST_SHOWN: Final = 200
"""Most characters of a refused text that an error repeats."""
SEVERAL_LINES: Final = frozenset({"notes", "description", "text", "citation"})
"""Fields of bodies that may have line breaks and tabs: a job's notes, a backbone's description, a form's YAML, and how
to cite imported weights."""


_IDENTIFY: Final = dict[Callable[..., Any], Callable[[Request], None]]()


def identified_by(identify: Callable[[Request], None]) -> Callable[[Dependency], Dependency]:
    """Decorates a dependency that needs to know the caller: routes that have it run ``identify`` first.

    FastAPI runs dependencies after it has read and parsed the body, which nobody without a token shall make it do.
    """

    def register(dependency: Dependency) -> Dependency:
        _IDENTIFY[dependency] = identify
        return dependency

    return register


class TextRefused(HTTPException):
    """A body has characters that mislead terminals and pages. It is an `HTTPException` because FastAPI replaces other
    errors raised while it reads a body.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(422, "; ".join(map(str, problems)))
        self.problems = tuple(problems)


def text_refused(error: TextRefused) -> ApiProblem:
    return spec_problem(error.problems)


class StrictRequest(Request):
    """A request whose JSON body is read by `json_text`, and whose text is printable."""

    async def json(self) -> Any:
        """The body's value; raises `json.JSONDecodeError` and `TextRefused`."""
        if not hasattr(self, "_json"):
            value = json_text.read(await self.body())
            faults = misleading_texts(value, SEVERAL_LINES)
            if refused := [text_problem(path, text, fault) for path, text, fault in islice(faults, NAMED)]:
                raise TextRefused(refused)
            self._json = value
        return self._json


def text_problem(path: Sequence[str], text: str, fault: str) -> Problem:
    """The problem of a misleading text in a body; the field is named by what is visible of it."""
    pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path)
    return Problem(visible(".".join(path)), pointer, text[:LONGEST_SHOWN], fault)


class ApiRoute(APIRoute):
    """A route that identifies the caller before it looks at anything else of a request, reads JSON bodies strictly, and
    refuses query parameters that it does not declare.
    """

    takes_other_parameters: ClassVar[bool] = False
    """Whether parameters that the route does not declare are ignored."""

    @cached_property
    def _parameters(self) -> dict[str, bool]:
        """The declared query parameters, and whether each may be repeated."""
        return dict(_declared(self.dependant))

    @cached_property
    def identify(self) -> Callable[[Request], None] | None:
        """What identifies the caller; None for a route that answers everybody."""
        return next((_IDENTIFY[call] for call in _calls(self.dependant) if call in _IDENTIFY), None)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            if self.identify:
                await run_in_threadpool(self.identify, request)
            if not self.takes_other_parameters:
                self._check_parameters(request)
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly

    def _check_parameters(self, request: Request) -> None:
        """Raises the API's 422 for a parameter that the route does not know, that has two values instead of one, or
        whose text misleads.
        """
        counts = Counter(name for name, _ in request.query_params.multi_items())
        refused = [
            Problem(name, "", request.query_params[name], self._unknown(name))
            for name in counts
            if name not in self._parameters
        ]
        refused += [
            Problem(name, "", value[:LONGEST_SHOWN], fault)
            for name, value in request.query_params.multi_items()
            if name in self._parameters and (fault := misleading(value))
        ]
        refused += [
            Problem(name, "", request.query_params.getlist(name), f"is given {count} times: give it once")
            for name, count in counts.items()
            if count > 1 and self._parameters.get(name) is False
        ]
        if refused:
            named = refused[:NAMED]
            raise ApiProblem(422, "parameter_invalid", "; ".join(map(str, named)), tuple(named))

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._parameters, n=1)
        if close:
            return f"unknown parameter; did you mean {close[0]!r}?"
        known = ", ".join(sorted(self._parameters))
        return (
            f"unknown parameter; known here: {known}" if known else "unknown parameter: remove it, none is known here"
        )


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any] | None]:
    """A handler and all that it depends on."""
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)


def _declared(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """The query parameters of a handler and of what it depends on."""
    for field in dependant.query_params:
        yield field.alias, _holds_several(field.field_info.annotation)
    for inner in dependant.dependencies:
        yield from _declared(inner)


def _holds_several(annotation: Any) -> bool:
    """Whether a type is a list, or a union with one."""
    return get_origin(annotation) is list or any(get_origin(each) is list for each in get_args(annotation))

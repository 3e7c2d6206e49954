"""What all pages share: who asks, how a page is rendered, and what an error looks like to people."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, urlencode

import yaml
from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined

from service.auth.caller import Caller, Role, caller_by_id
from service.auth.sessions import Sessions
from service.context.app_state import AppState, StateDep
from service.dashboard.assets import url_of
from service.dashboard.shown import FILTERS, seconds_between
from service.http.problems import ApiProblem, problems_of
from service.http.validation import validation_problem
from service.jobs.lifecycle import EFFECTS, Effect, Verb
from service.jobs.schemas import JobView
from trainer.spec.job import Kind

Found = TypeVar("Found")
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Cookie",
}

environment = Environment(
    loader=PackageLoader("service.dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters.update(FILTERS)
environment.globals.update(asset=url_of, version=version("rcmae"), seconds_between=seconds_between, query=urlencode)


class Page:
    """One request for a page, by somebody who is logged in."""

    def __init__(self, request: Request, parts: AppState, caller: Caller) -> None:
        self.request, self.parts, self.caller = request, parts, caller
        self.sessions: Sessions = request.app.state.sessions

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def csrf(self) -> str:
        return self.sessions.csrf(self.caller.token_id or "")

    @property
    def submits(self) -> bool:
        """Whether this caller may start something: others see no control for it."""
        return self.caller.role >= Role.SUBMITTER

    @property
    def administers(self) -> bool:
        return self.caller.role >= Role.ADMIN

    def controls(self, owner: str) -> bool:
        """Whether this caller may change what somebody owns."""
        return self.caller.role >= self.caller.role_to_control(owner)

    def offered(self, job: JobView) -> set[str]:
        """What this caller may do with a job, as its state allows."""
        if not self.controls(job.owner):
            return set()
        found = {verb.value for verb in Verb if EFFECTS[verb][job.state] not in {Effect.REFUSED, Effect.SAME}}
        return found if job.kind == Kind.SEARCH else found - {Verb.STOP.value}

    def url(self, **changes: Any) -> str:
        """This page's address with parts of its query changed; None takes one away, a list gives it several times."""
        query: dict[str, list[str]] = {}
        for name, value in self.request.query_params.multi_items():
            query.setdefault(name, []).append(value)
        for name, value in changes.items():
            query.pop(name, None)
            if value is not None:
                query[name] = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
        text = urlencode(query, doseq=True)
        return f"{self.path}?{text}" if text else self.path

    def render(self, template: str, /, *, charts: bool = False, status: int = 200, **context: Any) -> HTMLResponse:
        """A page. ``charts`` says that plotly.js draws on it, which writes styles of its own."""
        response = _render(template, status, charts, page=self, **context)
        self.sessions.begin(self.request, response, self.caller.token_id or "")
        return response

    def attempt(self, read: Callable[[], Found]) -> tuple[Found | None, str | None]:
        """What ``read`` returns, or why it cannot be read now: the rest of the page is shown without it."""
        problems = problems_of(self.request)
        try:
            return read(), None
        except problems.exceptions as error:
            problem = problems.of(error)
            if problem.status != 503 and problem.code != "artifacts_not_here":
                raise
            return None, problem.detail


def _render(template: str, status: int, charts: bool, **context: Any) -> HTMLResponse:
    response = HTMLResponse(environment.get_template(template).render(**context), status, HEADERS)
    response.headers["Content-Security-Policy"] = POLICY.format(styles=" 'unsafe-inline'" if charts else "")
    return response


def page_of(request: Request, parts: StateDep) -> Page:
    """Raises the API's 401 without a session, which `PageRoute` answers with the way to log in."""
    sessions: Sessions = request.app.state.sessions
    token_id = sessions.token_id(request)
    if token_id is None:
        raise ApiProblem(401, "unauthorized", "log in first")
    return Page(request, parts, caller_by_id(parts.database, token_id, request.state.trail))


PageDep = Annotated[Page, Depends(page_of)]


def written(document: object) -> str:
    """A spec as YAML."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return text


class PageRoute(APIRoute):
    """A route whose errors are pages, and whose 401 leads to the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return problem_page(request, validation_problem(request, error))
            except problems_of(request).exceptions as error:
                return problem_page(request, problems_of(request).of(error))

        return handled


def problem_page(request: Request, problem: ApiProblem) -> Response:
    """An error as people read it; without a session, the login, which leads back here."""
    if problem.status == 401 and "HX-Request" not in request.headers:
        there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        response: Response = RedirectResponse(f"/login?next={quote(there)}", 303)
        request.app.state.sessions.end(response)
        return response
    request.state.code = problem.code
    title = HTTPStatus(problem.status).phrase
    found = {"title": title, "problem": problem, "request_id": getattr(request.state, "id", None)}
    return _render("error.html", problem.status, False, **found)


def login_page(status: int = 200, **context: Any) -> HTMLResponse:
    return _render("login.html", status, False, **context)

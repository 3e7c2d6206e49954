"""What all pages share: the caller, the rendering of templates, and error pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from service.auth.caller import Caller, Role, caller_by_id
from service.auth.sessions import Sessions
from service.context.app_state import AppState, StateDep
from service.dashboard.assets import url_of
from service.dashboard.formatting import FILTERS, seconds_between
from service.http.problems import ApiProblem, problems_of
from service.http.routing import ApiRoute
from service.http.validation import validation_problem
from service.jobs.lifecycle import EFFECTS, Effect, Verb
from service.jobs.schemas import JobView
from trainer.spec.job import Kind

Result = TypeVar("Result")
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
    """A request for a page by somebody who is logged in."""

    def __init__(self, request: Request, state: AppState, caller: Caller) -> None:
        self.request, self.state, self.caller = request, state, caller
        self.sessions: Sessions = request.app.state.sessions

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def csrf(self) -> str:
        return self.sessions.csrf(self.caller.token_id or "")

    @property
    def submits(self) -> bool:
        """Whether this caller may start jobs; others do not see the controls for that."""
        return self.caller.role >= Role.SUBMITTER

    @property
    def administers(self) -> bool:
        return self.caller.role >= Role.ADMIN

    def controls(self, owner: str) -> bool:
        """Whether this caller may control an owner's jobs."""
        return self.caller.role >= self.caller.role_to_control(owner)

    def offered(self, job: JobView) -> set[str]:
        """The verbs that this caller may use on a job in its current state."""
        if not self.controls(job.owner):
            return set()
        verbs = {verb.value for verb in Verb if EFFECTS[verb][job.state] not in {Effect.REFUSED, Effect.SAME}}
        return verbs if job.kind == Kind.SEARCH else verbs - {Verb.STOP.value}

    def url(self, **changes: Any) -> str:
        """This page's URL with changed query parameters: None removes one, and a list repeats it."""
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
        """Render a page. ``charts`` allows the inline styles that plotly.js needs."""
        response = _render(template, status, charts, page=self, **context)
        self.sessions.begin(self.request, response, self.caller.token_id or "")
        return response

    def attempt(self, read: Callable[[], Result]) -> tuple[Result | None, str | None]:
        """The result of ``read``, or the reason why it is unavailable now, so that the page is shown without it."""
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


def page_of(request: Request, state: StateDep) -> Page:
    """Raises the API's 401 without a valid session; `PageRoute` then redirects to the login page."""
    sessions: Sessions = request.app.state.sessions
    token_id = sessions.token_id(request)
    if token_id is None:
        raise ApiProblem(401, "unauthorized", "log in first")
    return Page(request, state, caller_by_id(state.database, token_id, request.state.trail))


PageDep = Annotated[Page, Depends(page_of)]


def _curves_view(x: str | None = None, smooth: str | None = None) -> None:
    """The axis and the smoothing that charts.js keeps in the address of a page."""
    del x, smooth


WITH_CURVES: Final = [Depends(_curves_view)]
"""The dependencies of pages with curves."""


class PageRoute(ApiRoute):
    """A route whose errors are HTML pages, and whose 401 redirects to the login page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_error_pages(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return problem_page(request, validation_problem(request, error))
            except problems_of(request).exceptions as error:
                return problem_page(request, problems_of(request).of(error))

        return handle_with_error_pages


def problem_page(request: Request, problem: ApiProblem) -> Response:
    """An error as an HTML page. A 401 redirects to the login page, which returns here afterwards."""
    if problem.status == 401 and "HX-Request" not in request.headers:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        response: Response = RedirectResponse(f"/login?next={quote(target)}", 303)
        request.app.state.sessions.end(response)
        return response
    request.state.code = problem.code
    title = HTTPStatus(problem.status).phrase
    context = {"title": title, "problem": problem, "request_id": getattr(request.state, "id", None)}
    return _render("error.html", problem.status, False, **context)


def login_page(status: int = 200, **context: Any) -> HTMLResponse:
    return _render("login.html", status, False, **context)

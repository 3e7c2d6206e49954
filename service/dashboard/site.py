"""What all pages share: the caller, the rendering of templates, and error pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Depends, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.security import SecurityScopes
from jinja2 import Environment, PackageLoader, StrictUndefined

from service.auth import sessions
from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.context.app_state import AppState, StateDep
from service.dashboard.assets import url_of
from service.dashboard.formatting import FILTERS, seconds_between
from service.http.headers import PAGE_HEADERS, POLICY
from service.http.problems import ApiProblem, limited, problems_of
from service.http.routing import ApiRoute, identified_by
from service.http.validation import validation_problem
from service.jobs.lifecycle import EFFECTS, Effect, Verb
from service.jobs.schemas import JobView
from trainer.spec.job import Kind

Result = TypeVar("Result")

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

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def csrf(self) -> str:
        return sessions.csrf_of(self.request)

    @property
    def submits(self) -> bool:
        """Whether this caller may start jobs; others do not see the controls for that."""
        return self.caller.has(Scope.SUBMIT)

    @property
    def makes_tokens(self) -> bool:
        """Whether this caller may make tokens, at least for itself."""
        return self.caller.has(Scope.OWN_TOKENS)

    @property
    def manages_tokens(self) -> bool:
        """Whether this caller may see everybody's tokens and make tokens for everybody."""
        return self.caller.has(Scope.READ_TOKENS) and self.caller.has(Scope.TOKENS)

    @property
    def reads_audit(self) -> bool:
        return self.caller.has(Scope.READ_AUDIT)

    @property
    def reads_webhooks(self) -> bool:
        """Whether this caller may have webhooks, at least its own."""
        return self.caller.has(Scope.READ_OWN_WEBHOOKS)

    def controls(self, owner: str) -> bool:
        """Whether this caller may control an owner's jobs."""
        return self.caller.may(Scope.JOBS, owner)

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
        sessions.extend(self.request, response)
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
    response = HTMLResponse(environment.get_template(template).render(**context), status, PAGE_HEADERS)
    response.headers["Content-Security-Policy"] = POLICY.format(styles=" 'unsafe-inline'" if charts else "")
    return response


def _identify(request: Request) -> None:
    """Store the caller of a request, known by its session.

    Raises the API's 401 without a valid session; `PageRoute` then redirects to the login page.
    """
    state: AppState = request.app.state.app_state
    found = sessions.caller_of_session(state.database, request, request.state.trail)
    if found is None:
        raise ApiProblem(401, "unauthorized", "log in first")
    request.state.caller = found


@identified_by(_identify)
async def page_of(request: Request, state: StateDep, needed: SecurityScopes) -> Page:
    """The page of a route, which has identified the caller. Raises 403 if a declared scope is missing."""
    page = Page(request, state, request.state.caller)
    for scope in needed.scopes:
        page.caller.must_have(Scope(scope))
    return page


# The page of a route, whose caller has the scopes that the route declares by this.
SessionPage = Annotated[Page, Depends(page_of)]
JobsPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_OWN_JOBS])]
ControlPage = Annotated[Page, Security(page_of, scopes=[Scope.OWN_JOBS])]
BackbonesPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_OWN_BACKBONES])]
BackboneDeletionPage = Annotated[Page, Security(page_of, scopes=[Scope.OWN_BACKBONES])]
EvaluationsPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_OWN_JOBS, Scope.READ_OWN_BACKBONES])]
ClusterPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_CLUSTER])]
TokensPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_OWN_TOKENS])]
WebhooksPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_OWN_WEBHOOKS])]
AuditPage = Annotated[Page, Security(page_of, scopes=[Scope.READ_AUDIT])]


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
    """An error as an HTML page. A 401 leads to the login page, which returns here afterwards."""
    shown = limited(request, problem)
    request.state.code = shown.code
    if problem.status == 401 and "HX-Request" not in request.headers:
        response = _login_first(request, shown)
        sessions.forget(response)
        return response
    title = HTTPStatus(shown.status).phrase
    context = {"title": title, "problem": shown, "request_id": getattr(request.state, "id", None)}
    response = _render("error.html", shown.status, False, **context)
    response.headers.update(shown.headers or {})
    return response


def _login_first(request: Request, shown: ApiProblem) -> Response:
    """A redirect to the login page, or that page itself where the client's address is limited: a token is welcome."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = target if request.method in sessions.SAFE_METHODS else "/"
    if shown.status == 401:
        return RedirectResponse(f"/login?next={quote(target)}", 303)
    page = login_page(shown.status, to=target, error=shown.detail)
    page.headers.update(shown.headers or {})
    return page


def login_page(status: int = 200, **context: Any) -> HTMLResponse:
    return _render("login.html", status, False, **context)

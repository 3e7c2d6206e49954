"""Logging in with a token, and out."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.auth.caller import caller_of
from service.auth.sessions import OWN_SITE, Sessions
from service.context.app_state import StateDep
from service.dashboard.site import PageDep, PageRoute, login_page
from service.http.problems import ApiProblem

router = APIRouter(include_in_schema=False, route_class=PageRoute)

HOME: Final = "/"
LONGEST: Final = 2000


def _own(there: str) -> str:
    """A place on this site; anything else is the first page."""
    parts = urlsplit(there)
    here = there.startswith("/") and not there.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return there if here and there.isprintable() else HOME


@router.get("/login")
def login(request: Request, to: Annotated[str, Query(alias="next", max_length=LONGEST)] = HOME) -> Response:
    """Where one logs in; whoever has a session goes on at once."""
    sessions: Sessions = request.app.state.sessions
    if sessions.token_id(request):
        return RedirectResponse(_own(to), 303)
    return login_page(to=_own(to), error=None)


@router.post("/login")
def log_in(
    request: Request,
    parts: StateDep,
    token: Annotated[str, Form(max_length=LONGEST)] = "",
    to: Annotated[str, Form(alias="next", max_length=LONGEST)] = HOME,
) -> Response:
    """Begin a session with a token."""
    sessions: Sessions = request.app.state.sessions
    try:
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in OWN_SITE:
            raise ApiProblem(401, "unauthorized", "this was sent by a page of another site: log in here")  # noqa: TRY301
        if not token.strip():
            raise ApiProblem(401, "unauthorized", "enter your token")  # noqa: TRY301
        caller = caller_of(parts.database, f"Bearer {token.strip()}", request.state.trail)
    except ApiProblem as problem:
        if problem.status != 401:
            raise
        request.state.code = problem.code
        return login_page(401, to=_own(to), error=problem.detail)
    response = RedirectResponse(_own(to), 303)
    sessions.begin(request, response, caller.token_id or "")
    return response


@router.post("/logout")
def log_out(page: PageDep, csrf: Annotated[str, Form()] = "") -> Response:
    """End the session in this browser. The token stays as it is."""
    response = RedirectResponse("/login", 303)
    if csrf == page.csrf:
        page.sessions.end(response)
    return response

"""Login with a token, and logout."""

from __future__ import annotations

import hmac
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.auth import sessions
from service.auth.caller import caller_of, validity_of
from service.context.app_state import StateDep
from service.dashboard.site import PageRoute, SessionPage, login_page
from service.db.tables import now
from service.http.problems import ApiProblem, limited

router = APIRouter(include_in_schema=False, route_class=PageRoute)

HOME: Final = "/"
LONGEST: Final = 2000


def _local_path(target: str) -> str:
    """A path on this site, or the home page if the target is anything else: prevents open redirects."""
    url = urlsplit(target)
    local = target.startswith("/") and not target.startswith(("//", "/\\")) and not url.scheme and not url.netloc
    return target if local and target.isprintable() else HOME


@router.get("/login")
def login(
    request: Request, state: StateDep, to: Annotated[str, Query(alias="next", max_length=LONGEST)] = HOME
) -> Response:
    """The login page. It redirects at once if there is a session."""
    session = sessions.identify(state.database, request, request.state.trail)
    if session and validity_of(session[0], now()) == "active":
        return RedirectResponse(_local_path(to), 303)
    return login_page(to=_local_path(to), error=None)


@router.post("/login")
def log_in(
    request: Request,
    state: StateDep,
    token: Annotated[str, Form(max_length=LONGEST)] = "",
    to: Annotated[str, Form(alias="next", max_length=LONGEST)] = HOME,
) -> Response:
    """Begin a session with a token."""
    try:
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in sessions.OWN_SITE:
            raise ApiProblem(401, "unauthorized", "a page of another site sent this form: log in here")  # noqa: TRY301
        if not token.strip():
            raise ApiProblem(401, "unauthorized", "enter your token")  # noqa: TRY301
        caller = caller_of(state.database, f"Bearer {token.strip()}", request.state.trail)
    except ApiProblem as problem:
        if problem.status != 401:
            raise
        refusal = limited(request, problem)
        request.state.code = refusal.code
        page = login_page(refusal.status, to=_local_path(to), error=refusal.detail)
        page.headers.update(refusal.headers or {})
        return page
    response = RedirectResponse(_local_path(to), 303)
    sessions.begin(state.database, request, response, caller.token_id or "")
    return response


@router.post("/logout")
def log_out(page: SessionPage, csrf: Annotated[str, Form()] = "") -> Response:
    """End the session everywhere. The token stays valid."""
    response = RedirectResponse("/login", 303)
    if hmac.compare_digest(csrf.encode(), page.csrf.encode()):
        sessions.end(page.state.database, page.request, response)
    return response

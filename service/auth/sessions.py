"""Sessions of the dashboard: rows in the database, so that every process of the service knows when one has ended.

A cookie holds a random text that names the session; the database holds its sha256 and the token that began it. Each
request reads both rows at once, so a session ends as soon as somebody logs out, or its token expires or is revoked.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection
from starlette.responses import Response

from service.auth.caller import Caller, caller_with, sha256, validity_of
from service.auth.trail import Trail
from service.db.database import Database
from service.db.tables import BrowserSession, Token, now
from service.http.problems import ApiProblem

COOKIE: Final = "rcmae_session"
CSRF_HEADER: Final = "X-CSRF-Token"
LIFE: Final = timedelta(hours=12)
"""Life of a session after its last request."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITE: Final = frozenset({"same-origin", "none"})


def begin(database: Database, request: HTTPConnection, response: Response, token_id: str) -> None:
    """Begin a session with a token, and remove those whose life is over."""
    text, moment = secrets.token_urlsafe(32), now()
    with database.session() as session:
        session.execute(delete(BrowserSession).where(BrowserSession.seen_at <= moment - LIFE))
        session.add(BrowserSession(sha256=sha256(text), token_id=token_id, created_at=moment, seen_at=moment))
    _set_cookie(request, response, text)


def extend(request: HTTPConnection, response: Response) -> None:
    """Make the browser keep the cookie for longer, as the session's life begins again with each request."""
    _set_cookie(request, response, request.cookies[COOKIE])


def _set_cookie(request: HTTPConnection, response: Response, text: str) -> None:
    response.set_cookie(
        COOKIE,
        text,
        max_age=int(LIFE.total_seconds()),
        httponly=True,
        samesite="lax",  # lets a link on another site open a page; changes need `CSRF_HEADER` too
        secure=request.url.scheme == "https",
    )


def end(database: Database, request: HTTPConnection, response: Response) -> None:
    """End the session of a request, in every browser that has its cookie."""
    with database.session() as session:
        session.execute(delete(BrowserSession).where(BrowserSession.sha256 == sha256(request.cookies[COOKIE])))
    forget(response)


def end_all(session: Session, token_id: str) -> None:
    """End all sessions of a token, within a transaction."""
    session.execute(delete(BrowserSession).where(BrowserSession.token_id == token_id))


def forget(response: Response) -> None:
    """Delete the cookie in the browser."""
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")


def identify(database: Database, request: HTTPConnection, trail: Trail | None = None) -> tuple[Token, datetime] | None:
    """The token of a request's session, valid or not, and when the session was last used; None without a session.

    The token's owner becomes the trail's actor.
    """
    text = request.cookies.get(COOKIE)
    if not text:
        return None
    query = (
        select(Token, BrowserSession.seen_at)
        .join(BrowserSession, BrowserSession.token_id == Token.id)
        .where(BrowserSession.sha256 == sha256(text), BrowserSession.seen_at > now() - LIFE)
    )
    with database.query() as session:
        row = session.execute(query).one_or_none()
    if row is None:
        return None
    token, seen_at = row
    if trail:
        trail.actor, trail.token_id, trail.session = token.owner, token.id, sha256(text)
    return token, seen_at


def caller_of_session(database: Database, request: HTTPConnection, trail: Trail | None = None) -> Caller | None:
    """The caller of a request's session; None without a session. Raises the API's 401 if its token is invalid."""
    found = identify(database, request, trail)
    return caller_with(*found, trail) if found else None


def valid_ones(database: Database, callers: Iterable[tuple[str, str | None]]) -> set[tuple[str, str | None]]:
    """Those callers that are still valid. Each is the id of a token and, for a session, the sha256 of its text."""
    pairs, moment = set(callers), now()
    with database.read() as session:
        tokens = session.scalars(select(Token).where(Token.id.in_({token_id for token_id, _ in pairs})))
        active = {token.id for token in tokens if validity_of(token, moment) == "active"}
        begun = {digest for _, digest in pairs if digest is not None}
        query = select(BrowserSession.sha256).where(
            BrowserSession.sha256.in_(begun), BrowserSession.seen_at > moment - LIFE
        )
        alive = set(session.scalars(query)) if begun else set()
    return {(token_id, digest) for token_id, digest in pairs if token_id in active and digest in {None, *alive}}


def csrf_of(request: HTTPConnection) -> str:
    """The CSRF token of a request's session, which a page sends in `CSRF_HEADER` with every change.

    It is derived from the cookie, which no script can read, and does not reveal it. Other sites' pages cannot read it.
    """
    return hmac.new(request.cookies[COOKIE].encode(), b"rcmae csrf", "sha256").hexdigest()


def check_csrf(request: HTTPConnection) -> None:
    """Raises the API's 401 for a change that was not requested by a page of this service."""
    if request.scope["method"] in SAFE_METHODS:
        return
    csrf = request.headers.get(CSRF_HEADER, "")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if site not in OWN_SITE or not hmac.compare_digest(csrf.encode(), csrf_of(request).encode()):
        text = f"a change by a session needs the page's {CSRF_HEADER} header: load the page again"
        raise ApiProblem(401, "unauthorized", text)

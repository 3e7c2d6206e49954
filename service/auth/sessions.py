"""Sessions of the dashboard: a signed cookie that names a token, so that any process of the service knows it.

The cookie does not hold the token's text, and says nothing of what the token may do: that is looked up for each
request, so a token that ends or is revoked ends its sessions at once.
"""

from __future__ import annotations

import hmac
from datetime import timedelta
from pathlib import Path
from typing import Final

from itsdangerous import BadSignature, Signer, URLSafeTimedSerializer
from starlette.requests import HTTPConnection
from starlette.responses import Response

from service.http.problems import ApiProblem

COOKIE: Final = "rcmae_session"
CSRF_HEADER: Final = "X-CSRF-Token"
LIFE: Final = timedelta(hours=12)
"""Without a page being opened; each one that is begins it anew."""
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITE: Final = frozenset({"same-origin", "none"})


class Sessions:
    """What signs and reads the cookies of a service."""

    def __init__(self, secret_file: Path | None) -> None:
        """``secret_file`` holds what every process of the service knows and nobody else: the first admin's token."""
        self._file = secret_file

    def _secret(self) -> str:
        if self._file is None:
            raise ApiProblem(
                503, "unavailable", "the dashboard needs RCMAE_ADMIN_TOKEN_FILE: its sessions are signed with it"
            )
        return self._file.read_text().strip()

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._secret(), salt="rcmae session")

    def begin(self, request: HTTPConnection, response: Response, token_id: str) -> None:
        """Give a browser the cookie of a token; also where it has one, to make it last longer."""
        response.set_cookie(
            COOKIE,
            self._serializer().dumps(token_id),
            max_age=int(LIFE.total_seconds()),
            httponly=True,
            samesite="lax",  # a link from elsewhere opens a page; what changes something needs `CSRF_HEADER` too
            secure=request.url.scheme == "https",
        )

    def end(self, response: Response) -> None:
        response.delete_cookie(COOKIE, httponly=True, samesite="lax")

    def token_id(self, request: HTTPConnection) -> str | None:
        """The id of the token in whose name a browser asks; None without a session, or with one that has ended."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            found = self._serializer().loads(cookie, max_age=int(LIFE.total_seconds()))
        except BadSignature:
            return None
        return found if isinstance(found, str) else None

    def csrf(self, token_id: str) -> str:
        """What a page sends with every change, in `CSRF_HEADER`: other sites' pages cannot read it."""
        return Signer(self._secret(), salt="rcmae csrf").get_signature(token_id).decode()

    def check_csrf(self, request: HTTPConnection, token_id: str) -> None:
        """Raises the API's 401 for a change that no page of ours has asked for."""
        if request.scope["method"] in SAFE:
            return
        given = request.headers.get(CSRF_HEADER, "")
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        if site not in OWN_SITE or not hmac.compare_digest(given.encode(), self.csrf(token_id).encode()):
            raise ApiProblem(
                401, "unauthorized", f"a change by a session needs the page's {CSRF_HEADER}: load the page again"
            )

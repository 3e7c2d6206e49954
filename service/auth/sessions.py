"""Sessions of the dashboard: a signed cookie that names a token, which any process of the service can verify.

The cookie holds the token's id, neither its text nor its role. The token is looked up for each request, so its sessions
end as soon as it expires or is revoked.
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
"""Life of a session after the last page was opened."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITE: Final = frozenset({"same-origin", "none"})


class Sessions:
    """Signs and reads session cookies."""

    def __init__(self, secret_file: Path | None) -> None:
        """``secret_file`` holds the signing secret, which only the service's processes know: the first admin token."""
        self._file = secret_file

    def _secret(self) -> str:
        if self._file is None:
            raise ApiProblem(
                503, "unavailable", "the dashboard signs its sessions with RCMAE_ADMIN_TOKEN_FILE: set that variable"
            )
        return self._file.read_text().strip()

    def _serializer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._secret(), salt="rcmae session")

    def begin(self, request: HTTPConnection, response: Response, token_id: str) -> None:
        """Set the session cookie for a token. Setting it again extends the session."""
        response.set_cookie(
            COOKIE,
            self._serializer().dumps(token_id),
            max_age=int(LIFE.total_seconds()),
            httponly=True,
            samesite="lax",  # lets a link on another site open a page; changes need `CSRF_HEADER` too
            secure=request.url.scheme == "https",
        )

    def end(self, response: Response) -> None:
        """Delete the session cookie."""
        response.delete_cookie(COOKIE, httponly=True, samesite="lax")

    def token_id(self, request: HTTPConnection) -> str | None:
        """The id of the token that a browser's session names; None without a valid session."""
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            token_id = self._serializer().loads(cookie, max_age=int(LIFE.total_seconds()))
        except BadSignature:
            return None
        return token_id if isinstance(token_id, str) else None

    def csrf(self, token_id: str) -> str:
        """The CSRF token that a page sends in `CSRF_HEADER` with every change. Pages of other sites cannot read it."""
        return Signer(self._secret(), salt="rcmae csrf").get_signature(token_id).decode()

    def check_csrf(self, request: HTTPConnection, token_id: str) -> None:
        """Raises the API's 401 for a change that was not requested by a page of this service."""
        if request.scope["method"] in SAFE_METHODS:
            return
        csrf = request.headers.get(CSRF_HEADER, "")
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        if site not in OWN_SITE or not hmac.compare_digest(csrf.encode(), self.csrf(token_id).encode()):
            text = f"a change by a session needs the page's {CSRF_HEADER} header: load the page again"
            raise ApiProblem(401, "unauthorized", text)

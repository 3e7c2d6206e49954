"""Headers that protect responses: what a page may load, what may be stored, and which host a request may name."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import HttpMiddleware
from service.http.problems import ApiProblem, problem_response

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of every page; ``{styles}`` may allow more styles."""
PAGE_HEADERS: Final = {
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Cookie",
}
EVERY_NAME: Final = "*"


class ProtectiveHeaders(HttpMiddleware):
    """ASGI middleware: no response is read as another type, and none that a browser session read is stored."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                trail = scope.get("state", {}).get("trail")
                if trail and trail.session:
                    headers["Cache-Control"] = "no-store"
                    if "cookie" not in headers.get("Vary", "").lower():
                        headers.add_vary_header("Cookie")
            await send(message)

        await self._app(scope, receive, send_protected)


class KnownHosts(HttpMiddleware):
    """ASGI middleware that refuses requests for hosts that this service is not.

    A page of another site can make its own name lead to this machine (DNS rebinding), and its scripts may then read
    what they request from that name. They cannot do so with an address, which is why addresses are accepted.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        host = request.headers.get("Host", "")
        allowed: tuple[str, ...] = request.app.state.app_state.settings.allowed_hosts
        if is_allowed(host, allowed):
            await self._app(scope, receive, send)
            return
        text = (
            f"this service does not answer for the host {host!r}, only for {', '.join([*allowed, 'addresses'])}: if "
            "users reach it by that name, add it to RCMAE_ALLOWED_HOSTS and start the service again"
        )
        await problem_response(request, ApiProblem(421, "host_not_allowed", text))(scope, receive, send)


def is_allowed(host: str, allowed: Sequence[str]) -> bool:
    """Whether a `Host` header names this service: with an address, or a name that is allowed, at any port.

    ``*.example.org`` allows all names below it, and ``*`` every name. A request without the header is allowed, as
    browsers always send it.
    """
    name = _without_port(host).lower().rstrip(".")
    if not name or _is_address(name):
        return True
    below = (each[1:] for each in allowed if each.startswith("*."))
    return name in allowed or EVERY_NAME in allowed or any(name.endswith(ending) for ending in below)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

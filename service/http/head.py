"""Responds to HEAD wherever a route responds to GET."""

from __future__ import annotations

from anyio import CancelScope
from fastapi.routing import iter_route_contexts
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import HttpMiddleware


class HeadAsGet(HttpMiddleware):
    """ASGI middleware that routes a HEAD request as a GET and sends the headers of the response only.

    Routes of large files have a HEAD of their own, which reads no content. A stream ends with its first piece.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD" or _has_own(scope):
            await self._app(scope, receive, send)
            return
        cancellation, ended = CancelScope(), False

        async def send_headers(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                scope["method"] = "HEAD"  # which the server and the outer middlewares look at
                await send(message)
                return
            if not ended:
                ended = True
                await send({"type": "http.response.body"})
            if message.get("more_body"):
                cancellation.cancel()

        scope["method"] = "GET"
        try:
            with cancellation:
                await self._app(scope, receive, send_headers)
        finally:
            scope["method"] = "HEAD"


def _has_own(scope: Scope) -> bool:
    """Whether a route responds to this HEAD request itself."""
    routes = (route for route in iter_route_contexts(scope["app"].routes) if "HEAD" in (route.methods or ()))
    return any(route.matches(scope)[0] is Match.FULL for route in routes)

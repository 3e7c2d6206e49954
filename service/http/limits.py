"""The limit on the size of request bodies."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware import HttpMiddleware
from service.http.problems import ApiProblem, problem_response


class BodyTooLarge(HTTPException):
    """A request body exceeds the limit. It is an `HTTPException` because FastAPI replaces other errors raised while it
    reads a body.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is longer than the limit of {limit} bytes")


def body_too_large(error: BodyTooLarge) -> ApiProblem:
    return ApiProblem(413, "body_too_large", error.detail)


class BodyLimit(HttpMiddleware):
    """ASGI middleware that refuses request bodies over a limit. It runs inside the middleware that assigns request ids.

    If the request gives its length, it is refused before anything is read; otherwise as soon as too many bytes have
    arrived. FastAPI's own `max_body_size` lets a route that needs no body do its work first, and does not respond with
    a problem.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """``limit`` is in bytes."""
        super().__init__(app)
        self._limit = limit

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, received = Request(scope), 0
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            await problem_response(request, body_too_large(BodyTooLarge(self._limit)))(scope, receive, send)
            return

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, receive_counted, send)

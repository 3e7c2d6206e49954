"""The longest body of a request that is read."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import ApiProblem, answer


class BodyTooLarge(HTTPException):
    """A body that is not read to its end. FastAPI lets only errors of this kind through while it reads one."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request's body is longer than the {limit} bytes that are read here")


def too_large(error: BodyTooLarge) -> ApiProblem:
    return ApiProblem(413, "body_too_large", error.detail)


class BodyLimit:
    """ASGI middleware, inside the one that gives requests their ids: refuses bodies that are too long.

    Where the request gives its length, before anything is read or done; otherwise as soon as that many bytes have come
    in. FastAPI's own `max_body_size` lets a route that needs no body do its work first, and does not answer with a
    problem.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """``limit`` is in bytes."""
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, taken = Request(scope), 0
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            await answer(request, too_large(BodyTooLarge(self._limit)))(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, counted, send)

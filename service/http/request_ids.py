"""The id of each request: in its answer, in the log, and in the audit log."""

from __future__ import annotations

import uuid
from typing import Final

import structlog
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import ApiProblem, answer
from trainer.spec.masking import masked

log = structlog.get_logger()

HEADER: Final = "X-Request-ID"
LONGEST: Final = 64
"""Characters of an id that a client chose."""


class RequestIds:
    """ASGI middleware: gives every request an id, and answers also where something broke."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, begun = Request(scope), False
        given = request.headers.get(HEADER, "")
        sane = 0 < len(given) <= LONGEST and given.isprintable() and masked(given) == given
        request.state.id = given if sane else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[HEADER] = request.state.id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request.state.id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                # Here and not in a handler: Starlette's own handler of last resort runs outside this middleware.
                log.exception("request_failed", method=request.method, path=request.url.path)
                if begun:
                    raise  # cuts the connection: the client must not take a part of an answer for all of it
                problem = ApiProblem(500, "internal_error", "something went wrong in the service; its log has more")
                await answer(request, problem)(scope, receive, send_with_id)

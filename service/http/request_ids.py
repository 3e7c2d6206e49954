"""Request ids, which appear in the response, the log and the audit log."""

from __future__ import annotations

import uuid
from typing import Final

import structlog
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware import HttpMiddleware
from service.http.problems import ApiProblem, problem_response
from trainer.spec.masking import masked

log = structlog.get_logger()

HEADER: Final = "X-Request-ID"
LONGEST: Final = 64
"""Longest id, in characters, that is accepted from a client."""


class RequestIds(HttpMiddleware):
    """ASGI middleware that assigns an id to every request, and responds with 500 to unhandled exceptions."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, response_started = Request(scope), False
        client_id = request.headers.get(HEADER, "")
        acceptable = 0 < len(client_id) <= LONGEST and client_id.isprintable() and masked(client_id) == client_id
        request.state.id = client_id if acceptable else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                MutableHeaders(scope=message)[HEADER] = request.state.id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request.state.id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                # Not in an exception handler: Starlette runs the one for unhandled errors outside this middleware.
                log.exception("request_failed", method=request.method, path=request.url.path)
                if response_started:
                    raise  # closes the connection, so that the client does not take a partial response for a whole one
                problem = ApiProblem(500, "internal_error", "an internal error occurred: see the service's log")
                await problem_response(request, problem)(scope, receive, send_with_id)

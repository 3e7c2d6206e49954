"""Ends long responses, such as streams and downloads, soon after their caller's token or session has ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import structlog
from anyio import CancelScope, to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth.sessions import valid_ones
from service.db.database import Database, DatabaseUnreachable
from service.http.middleware import HttpMiddleware

log = structlog.get_logger()

LOOK_S: Final = 2.0
"""Seconds between two looks at the callers of all open responses."""


@dataclass(eq=False)
class _Open:
    """A response that has begun and not ended."""

    caller: tuple[str, str | None]
    """The id of its token and, for a session, the session's sha256."""
    scope: CancelScope = field(default_factory=CancelScope)


class OpenResponses(HttpMiddleware):
    """ASGI middleware that watches long responses. It runs inside `AuditLog`, from whose trail it learns the caller.

    One query looks at all callers, however many responses are open. While the database is unreachable none is ended.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._open: set[_Open] = set()
        self._task: asyncio.Task[None] | None = None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        watched: _Open | None = None
        cancellation, has_length, complete = CancelScope(), False, False

        async def send_watched(message: Message) -> None:
            nonlocal watched, has_length, complete
            if message["type"] == "http.response.start":
                has_length = "Content-Length" in Headers(raw=message["headers"])
            else:
                complete = not message.get("more_body", False)
                trail = scope["state"]["trail"]
                if not complete and watched is None and trail.token_id is not None:
                    watched = _Open((trail.token_id, trail.session), cancellation)
                    self._join(watched, scope["app"].state.app_state.database)
            await send(message)

        try:
            with cancellation:
                await self._app(scope, receive, send_watched)
        finally:
            if watched:
                self._leave(watched)
        # A body of unknown length ends as usual. One of a promised length stays short, and the server closes the
        # connection.
        if cancellation.cancelled_caught and not complete and not has_length:
            await send({"type": "http.response.body"})

    def _join(self, response: _Open, database: Database) -> None:
        self._open.add(response)
        if self._task is None:
            self._task = asyncio.create_task(self._run(database), name="callers of open responses")

    def _leave(self, response: _Open) -> None:
        self._open.discard(response)
        if not self._open and self._task:
            self._task.cancel()
            self._task = None

    async def _run(self, database: Database) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            callers = {response.caller for response in self._open}
            try:
                valid = await to_thread.run_sync(valid_ones, database, callers)
            except DatabaseUnreachable:
                continue
            except Exception:  # without this task no response would be ended
                log.exception("open_responses_failed")
                continue
            for response in self._open:
                if response.caller in callers - valid:
                    response.scope.cancel()

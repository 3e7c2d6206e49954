"""Every change that is asked for has its line in the audit log before it is answered."""

from __future__ import annotations

import structlog
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth.caller import identify, identify_by_id, text_of
from service.auth.sessions import Sessions
from service.auth.trail import Trail, note_use
from service.db.database import Database, DatabaseUnreachable
from service.http.problems import problem_response, unavailable

log = structlog.get_logger()


class NotRecorded(Exception):
    """The line could not be written, so the answer is not sent."""


class AuditLog:
    """ASGI middleware, inside the one that gives requests their ids.

    What was done has its line already, in the same transaction. What was refused, or needed no change, gets it here,
    between the answer and its sending: where the line cannot be written, the answer is 503 instead. After the answer
    the token's use is noted, by one thread of its own, which no request waits for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._noting: set[str] = set()
        self._one_at_a_time: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trail = scope.setdefault("state", {})["trail"] = Trail(scope)
        database: Database = scope["app"].state.parts.database
        request = Request(scope, receive)

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                await _settle(trail, database, request, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        except NotRecorded as error:
            await problem_response(request, unavailable("the audit log", error))(scope, receive, send)
        except Exception:
            await _settle(trail, database, request, 500)
            raise
        finally:
            await self._note_use(trail, database)

    async def _note_use(self, trail: Trail, database: Database) -> None:
        token_id, used_at = trail.token_id, trail.used_at
        if token_id is None or used_at is None or token_id in self._noting:
            return
        # Not of those threads that requests need: a database that is busy with writing lets them read.
        self._one_at_a_time = self._one_at_a_time or CapacityLimiter(1)
        self._noting.add(token_id)
        try:
            await to_thread.run_sync(note_use, database, token_id, used_at, limiter=self._one_at_a_time)
        finally:
            self._noting.discard(token_id)


async def _settle(trail: Trail, database: Database, request: Request, status: int) -> None:
    """Write the line of what was not done; raises `NotRecorded`."""
    if trail.action is None or (trail.settled and status < 400):
        return
    try:
        await to_thread.run_sync(_write, trail, database, request, status)
    except DatabaseUnreachable as error:
        told = {"action": trail.action, "actor": trail.actor, "status": status, "detail": str(error)}
        log.error("audit_not_written", **told)  # noqa: TRY400 - where it was called says nothing more
        if status < 500:
            raise NotRecorded(error) from error


def _write(trail: Trail, database: Database, request: Request, status: int) -> None:
    if trail.token_id is None:  # a body that is no JSON is refused before anybody asks who sends it
        _identify(trail, database, request)
    trail.write(database, status)


def _identify(trail: Trail, database: Database, request: Request) -> None:
    sessions: Sessions = request.app.state.sessions
    if text := text_of(request.headers.get("Authorization")):
        identify(database, text, trail)
    elif token_id := sessions.token_id(request):
        identify_by_id(database, token_id, trail)

"""Writes an entry into the audit log for every requested change, before the response is sent."""

from __future__ import annotations

import structlog
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.refusals import Refusals
from service.auth.trail import Trail, record_use
from service.db.database import Database, DatabaseUnreachable
from service.http.failures import network_of
from service.http.middleware import HttpMiddleware
from service.http.problems import problem_response, unavailable

log = structlog.get_logger()


class NotRecorded(Exception):
    """The audit entry could not be written, so the response is not sent."""


class AuditLog(HttpMiddleware):
    """ASGI middleware that audits requests. It runs inside the middleware that assigns request ids.

    A completed change has its entry already, written in the same transaction. A change that was refused or not needed
    gets its entry here, before the response is sent; if the entry cannot be written, the response is 503 instead. Of
    requests without a valid token only some get an entry, as `Refusals` decides. After the response, one separate
    thread, which no request waits for, records the last use of the token and the session.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self._recording: set[str] = set()
        self._one_thread: CapacityLimiter | None = None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        trail = scope.setdefault("state", {})["trail"] = Trail(scope)
        database: Database = scope["app"].state.app_state.database
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
            await self._record_use(trail, database)

    async def _record_use(self, trail: Trail, database: Database) -> None:
        token_id, used_at = trail.token_id, trail.used_at
        used = trail.session or token_id
        if token_id is None or used is None or used_at is None or used in self._recording:
            return
        # A limiter of its own: while the database is busy with writes, this must not take threads from requests.
        self._one_thread = self._one_thread or CapacityLimiter(1)
        self._recording.add(used)
        try:
            await to_thread.run_sync(record_use, database, token_id, trail.session, used_at, limiter=self._one_thread)
        finally:
            self._recording.discard(used)


async def _settle(trail: Trail, database: Database, request: Request, status: int) -> None:
    """Write the entry of a change that was not made. Raises `NotRecorded`."""
    if trail.action is None or (trail.settled and status < 400):
        return
    try:
        await to_thread.run_sync(_write, trail, database, request, status)
    except DatabaseUnreachable as error:
        fields = {"action": trail.action, "actor": trail.actor, "status": status, "detail": str(error)}
        log.error("audit_not_written", **fields)  # noqa: TRY400 - a traceback adds nothing
        if status < 500:
            raise NotRecorded(error) from error


def _write(trail: Trail, database: Database, request: Request, status: int) -> None:
    unrecorded: int | None = 0
    if not trail.valid or status in {401, 429}:
        address = network_of(request.client.host if request.client else "")
        refusals: Refusals = request.app.state.refusals
        unrecorded = refusals.unrecorded(address, trail.actor, trail.action or "")
    if unrecorded is not None:
        trail.write(database, status, unrecorded)

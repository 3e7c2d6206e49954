"""Writes an entry into the audit log for every requested change, before the response is sent."""

from __future__ import annotations

from asyncio import Task

import structlog
from anyio import CancelScope, to_thread
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from service.access.refusals import Refusals
from service.access.uses import Uses
from service.auth.trail import Trail
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
    requests without a valid token only some get an entry, as `Refusals` decides. `Uses` records, beside the response,
    what of a version is used, and after it the last use of the token and the session.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        trail = scope.setdefault("state", {})["trail"] = Trail(scope)
        database: Database = scope["app"].state.app_state.database
        uses: Uses = scope["app"].state.uses
        request = Request(scope, receive)
        recording: Task[None] | None = None

        async def send_recorded(message: Message) -> None:
            nonlocal recording
            if message["type"] == "http.response.start":
                trail.status = message["status"]
                await _settle(trail, database, request, message["status"])
                recording = uses.begin(trail, database)
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        except NotRecorded as error:
            await problem_response(request, unavailable("the audit log", error))(scope, receive, send)
        except Exception:
            await _settle(trail, database, request, 500)
            raise
        finally:
            if recording:
                with CancelScope(shield=True):  # a download that is broken off counts too
                    await recording
            await uses.end(trail, database)


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

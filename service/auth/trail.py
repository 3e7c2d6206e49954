"""What each request records besides its own changes: an audit log entry, the last use of its token, and what of a
backbone's version it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from http import HTTPStatus
from typing import Any, Final, Protocol, Self

import structlog
from sqlalchemy import event, or_, update
from sqlalchemy.orm import Session
from starlette.types import Scope

from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Audit, BrowserSession, Token, now
from trainer.spec.masking import masked
from trainer.spec.text import visible

log = structlog.get_logger()

NOBODY: Final = "-"
"""The actor of a request without a known token. No owner has that name."""

ACTIONS: Final = {
    "POST /v1/jobs": "job.submit",
    "PATCH /v1/jobs/{job_id}": "job.change",
    "DELETE /v1/jobs/{job_id}": "job.delete",
    "POST /v1/jobs/{job_id}/cancel": "job.cancel",
    "POST /v1/jobs/{job_id}/pause": "job.pause",
    "POST /v1/jobs/{job_id}/resume": "job.resume",
    "POST /v1/jobs/{job_id}/retry": "job.retry",
    "POST /v1/jobs/{job_id}/stop": "job.stop",
    "PATCH /v1/searches/{search_id}": "search.change",
    "POST /v1/searches/{search_id}/trials": "trial.add",
    "POST /v1/searches/{search_id}/trials/{number}/stop": "trial.stop",
    "POST /v1/searches/{search_id}/trials/{number}/retry": "trial.retry",
    "POST /v1/searches/{search_id}/trials/{number}/promote": "trial.promote",
    "PATCH /v1/backbones/{name}": "backbone.change",
    "PATCH /v1/backbones/{name}/versions/{version}": "backbone.change_version",
    "PUT /v1/backbones/{name}/aliases/{alias}": "backbone.alias",
    "DELETE /v1/backbones/{name}/aliases/{alias}": "backbone.unalias",
    "DELETE /v1/backbones/{name}/versions/{version}": "backbone.delete",
    "PUT /v1/backbones/{name}/retention": "backbone.retention",
    "DELETE /v1/backbones/{name}/retention": "backbone.remove_retention",
    "PUT /v1/backbones/{name}/champion-rule": "backbone.set_champion_rule",
    "DELETE /v1/backbones/{name}/champion-rule": "backbone.remove_champion_rule",
    "POST /v1/tokens": "token.create",
    "POST /v1/tokens/{token_id}/rotate": "token.rotate",
    "DELETE /v1/tokens/{token_id}": "token.revoke",
    "POST /v1/webhooks": "webhook.create",
    "PATCH /v1/webhooks/{webhook_id}": "webhook.change",
    "DELETE /v1/webhooks/{webhook_id}": "webhook.delete",
    "POST /v1/webhooks/{webhook_id}/rotate": "webhook.rotate",
    "POST /v1/webhooks/{webhook_id}/test": "webhook.test",
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry": "webhook.retry",
    "POST /login": "session.begin",
    "POST /logout": "session.end",
}
"""The audit log's action name for every route that makes changes."""
EXPIRE: Final = "backbone.expire"
"""The name of what no request makes: a retention rule deletes a version."""
BY_RULE: Final = "retention rule"
"""The actor of that. No owner has that name."""

DOWNLOADED: Final = (200, 206, 302)
"""Statuses of responses that send a file, a part of it, or the client to it."""


class Use(Protocol):
    """A use of a version that is recorded once for each token. Equal ones are the same use."""

    def __hash__(self) -> int: ...

    @property
    def day(self) -> date:
        """In UTC."""

    def only_asked(self) -> Self:
        """The same use by somebody who gets no file, such as a client that loads from its cache."""

    def record(self, session: Session, token_id: str) -> None:
        """Record it, unless it is recorded already."""


class Trail:
    """The audit trail of one request. Middlewares and dependencies fill it as they learn who the caller is."""

    def __init__(self, scope: Scope) -> None:
        """``scope`` is the request's ASGI scope, into which the router puts the matched route."""
        self._scope = scope
        self.actor = NOBODY
        self.token_id: str | None = None
        self.valid = False
        """Whether that token is valid."""
        self.session: str | None = None
        """The sha256 of the browser session's text, if the request comes from a session."""
        self.used_at: datetime | None = None
        """The minute of the use of the token or session, if the database has an earlier one."""
        self.use: Use | None = None
        """What the request uses if it succeeds."""
        self.status: int | None = None
        """The response's, once it has begun."""
        self.settled = False
        """Whether the entry is written, or none is needed."""

    @property
    def action(self) -> str | None:
        """The change that the request asks for; None if its route changes nothing."""
        route = self._scope.get("route")
        return ACTIONS.get(f"{self._scope['method']} {route.path}") if route else None

    @property
    def used(self) -> Use | None:
        """What the request uses, as far as its status says by now: HEAD and 304 only ask, and errors use nothing."""
        if self.use is None or self.status not in {*DOWNLOADED, HTTPStatus.NOT_MODIFIED}:
            return None
        sends = self._scope["method"] == "GET" and self.status in DOWNLOADED
        return self.use if sends else self.use.only_asked()

    def record(self, session: Session, target: str, detail: Mapping[str, Any]) -> None:
        """Add the entry of a completed change to the transaction that makes it, so that both commit or neither."""
        status = self._scope["route"].status_code or 200
        event.listen(session, "after_commit", lambda _: setattr(self, "settled", True))
        session.add(self._entry(status, target, detail))

    def write(self, database: Database, status: int, unrecorded: int = 0) -> None:
        """Write the entry of a request that made no change. Raises `DatabaseUnreachable`.

        ``unrecorded`` counts the requests of the same kind since the last entry, which have none.
        """
        target = next(iter(self._scope.get("path_params", {}).values()), "")
        code = self._scope["state"].get("code")
        detail = ({"code": code} if code else {}) | ({"unrecorded": unrecorded} if unrecorded else {})
        with database.session() as session:
            session.add(self._entry(status, target, detail))

    def _entry(self, status: int, target: str, detail: Mapping[str, Any]) -> Audit:
        client = self._scope.get("client")
        return Audit(
            actor=self.actor,
            token_id=self.token_id,
            action=self.action,
            target=_one_line(masked(str(target)))[:200],
            status=status,
            request_id=self._scope["state"].get("id"),
            address=_one_line(client[0])[:64] if client else None,
            detail=dict(detail) or None,
        )


def record_expiry(session: Session, backbone: str, detail: Mapping[str, Any]) -> None:
    """Add the entry of a version that a retention rule deletes to the transaction that does it."""
    session.add(Audit(actor=BY_RULE, action=EXPIRE, target=backbone, status=200, detail=dict(detail)))


def _one_line(text: str) -> str:
    """A text of a client, in which a line break cannot pass for the beginning of another entry."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def record_use(
    database: Database,
    token_id: str,
    browser_session: str | None,
    minute: datetime | None,
    use: Use | None = None,
) -> bool:
    """Store when a token was last used, and the session with it, or what of a version it uses.

    A failure is only logged; returns whether there was none.
    """
    try:
        with database.session() as session:
            if minute:
                _record_minute(session, token_id, browser_session, minute)
            if use:
                use.record(session, token_id)
    except DatabaseUnreachable as error:
        log.warning("use_not_recorded", token_id=token_id, use=use, detail=str(error))
        return False
    return True


def _record_minute(session: Session, token_id: str, browser_session: str | None, minute: datetime) -> None:
    earlier = or_(Token.last_used_at.is_(None), Token.last_used_at < minute)
    session.execute(update(Token).where(Token.id == token_id, earlier).values(last_used_at=minute))
    if browser_session:
        of_session = BrowserSession.sha256 == browser_session, BrowserSession.seen_at < minute
        session.execute(update(BrowserSession).where(*of_session).values(seen_at=minute))


def minute_to_record(last: datetime | None) -> datetime | None:
    """The current minute; None if the last recorded use is not earlier."""
    minute = now().replace(second=0, microsecond=0)
    return minute if last is None or last < minute else None

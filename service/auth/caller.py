"""Who makes a request, by bearer token. A token is stored as a hash, with an owner, a role and perhaps an expiry."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.auth.scopes import SCOPES, Role, Scope, named, roles_with
from service.auth.trail import Trail, minute_to_record
from service.db.database import Database
from service.db.tables import Token, now
from service.http.problems import ApiProblem

MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    owner: str
    role: Role
    token_id: str | None = field(default=None, compare=False)
    trail: Trail | None = field(default=None, compare=False, repr=False)
    """The request's audit trail; None outside a request."""

    def has(self, scope: Scope) -> bool:
        """Whether the caller's role has a scope."""
        return scope in SCOPES[self.role]

    def may(self, scope: Scope, *owners: str) -> bool:
        """Whether the caller's scopes allow it to do to the things of any of these owners what ``scope`` allows to
        everybody's.
        """
        return self.has(scope) or (self.owner in owners and self.has(scope.own))

    def must_have(self, scope: Scope) -> None:
        """Raises the API's 403 if the caller's role lacks a scope."""
        if not self.has(scope):
            raise self._forbidden("this needs", scope)

    def must(self, scope: Scope, *owners: str) -> None:
        """Raises the API's 403 unless `may`; it names the owners, of whom each may."""
        if not self.may(scope, *owners):
            mine = self.owner in owners
            others = " and ".join(f"{owner}'s" for owner in dict.fromkeys(owners))
            raise self._forbidden("this needs" if mine else f"this is {others}: it needs", scope.own if mine else scope)

    def _forbidden(self, what: str, scope: Scope) -> ApiProblem:
        text = f"{what} the scope {scope}, which a token of the role {named(roles_with([scope]))} has"
        return ApiProblem(403, "forbidden", f"{text}; yours has the role {self.role}")

    def only_owner(self, scope: Scope) -> str | None:
        """The only owner to whose things a scope is limited for this caller; None if it is not limited."""
        return None if self.has(scope) else self.owner

    @property
    def sees_only(self) -> str | None:
        """The only owner whose jobs the caller sees; None if it sees everybody's."""
        return self.only_owner(Scope.READ_JOBS)

    def sees(self, owner: str) -> bool:
        """Whether the caller sees an owner's jobs."""
        return self.may(Scope.READ_JOBS, owner)

    def record(self, session: Session, target: str, **detail: Any) -> None:
        """Record a change in the audit log, in the transaction that makes it. ``detail`` must hold no secret."""
        if self.trail:
            self.trail.record(session, target, detail)

    def changes_nothing(self) -> None:
        """Mark the request as one that needs no audit entry, although its route can make changes."""
        if self.trail:
            self.trail.settled = True


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer_token(authorization: str | None) -> str:
    """The token's text in an `Authorization` header; empty if there is none."""
    scheme, _, text = (authorization or "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def identify(database: Database, text: str, trail: Trail | None = None) -> Token | None:
    """The token with this text, valid or not; None if it is unknown. Its owner becomes the actor of ``trail``."""
    with database.query() as session:
        token = session.get(Token, sha256(text))
    if token and trail:
        trail.actor, trail.token_id = token.owner, token.id
    return token


def validity_of(token: Token, moment: datetime) -> Literal["active", "ended", "revoked"]:
    """Whether a token is valid, and if not, why."""
    if token.revoked_at is not None:
        return "revoked"
    return "ended" if token.expires_at is not None and token.expires_at <= moment else "active"


def has_valid_token(
    owner: str | InstrumentedAttribute[str],
    roles: Collection[Role] = tuple(Role),
    since: InstrumentedAttribute[datetime] | None = None,
) -> ColumnElement[bool]:
    """Whether somebody, or whoever a column names, has a valid token of one of some roles.

    With ``since``, a token that has ended after the moment in that column counts as valid.
    """
    unrevoked = Token.revoked_at.is_(None)
    query = select(Token.id).where(Token.owner == owner, Token.role.in_(roles))
    query = query.where(unrevoked if since is None else or_(unrevoked, Token.revoked_at > since))
    query = query.where(or_(Token.expires_at.is_(None), Token.expires_at > (now() if since is None else since)))
    return query.correlate_except(Token).exists()  # the column may be of a query further out


def caller_of(database: Database, authorization: str | None, trail: Trail | None = None) -> Caller:
    """The caller with the token in an `Authorization` header. Raises the API's 401."""
    text = bearer_token(authorization)
    if not text:
        raise ApiProblem(401, "unauthorized", "send the header Authorization: Bearer <token>")
    token = identify(database, text, trail)
    if token is None:
        raise ApiProblem(401, "unauthorized", "this service does not know the token")
    return caller_with(token, token.last_used_at, trail)


def caller_with(token: Token, last_use: datetime | None, trail: Trail | None) -> Caller:
    """The caller with a token, whose last recorded use was at ``last_use``. Raises the API's 401 if it has ended."""
    match validity_of(token, now()):
        case "revoked":
            raise ApiProblem(401, "unauthorized", "this token was revoked: use another one")
        case "ended":
            raise ApiProblem(401, "unauthorized", f"this token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC")
    if trail:
        trail.valid = True
        trail.used_at = minute_to_record(last_use)
    return Caller(token.owner, Role(token.role), token.id, trail)


def ensure_token(database: Database, token: str, owner: str, role: Role, name: str = "") -> None:
    """Register a token by its text. One that expired or was revoked stays so. Raises `ValueError` if too short."""
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(f"a token needs at least {MIN_TOKEN_LENGTH} characters")
    with database.session() as session:
        session.merge(Token(sha256=sha256(token), owner=owner, role=role, name=name))


def ensure_admin(database: Database, file: Path) -> None:
    """Register the token in a file as an admin token. Raises `OSError` and `ValueError`."""
    ensure_token(database, file.read_text().strip(), "admin", Role.ADMIN, "RCMAE_ADMIN_TOKEN_FILE")

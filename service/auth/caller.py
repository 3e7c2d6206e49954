"""Bearer tokens: known by their hash, with an owner, a role and perhaps an end."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.trail import Trail, minute_of_use
from service.db.database import Database
from service.db.tables import Token, now
from service.http.problems import ApiProblem

MIN_TOKEN_LENGTH = 16


class Role(IntEnum):
    """What a token's owner may do and see.

    In what it may *do*, each role includes those before it. What it *sees* does not follow that order: `sees_all`.
    """

    VIEWER = 1
    """Read everything, change nothing."""
    SUBMITTER = 2
    """Submit jobs, and see and control one's own."""
    OPERATOR = 3
    """See and control everybody's."""
    ADMIN = 4
    """Tokens and the audit log too."""

    @property
    def sees_all(self) -> bool:
        """Whether it sees everybody's jobs, rather than its owner's alone."""
        return self is not Role.SUBMITTER

    @property
    def can_grant(self) -> list[Role]:
        """The roles that it can give to a new token: those that neither do nor see more than itself."""
        if self < Role.SUBMITTER:  # making a token is a change
            return []
        return [role for role in Role if role <= self and role.sees_all <= self.sees_all]


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    owner: str
    role: Role
    token_id: str | None = field(default=None, compare=False)
    trail: Trail | None = field(default=None, compare=False, repr=False)
    """Of the request; None outside of one."""

    @property
    def sees_only(self) -> str | None:
        """The owner whose jobs are all that there is for this caller; None where it sees everybody's."""
        return None if self.role.sees_all else self.owner

    def sees(self, owner: str) -> bool:
        """Whether the jobs of an owner are there for this caller."""
        return self.sees_only in {None, owner}

    def must_be(self, role: Role) -> None:
        """Raises the API's 403."""
        if self.role < role:
            raise ApiProblem(
                403, "forbidden", f"a token of the role {role.name.lower()} is needed; this one's is {self.role_name}"
            )

    def must_control(self, owner: str) -> None:
        """Raises the API's 403 where a job is somebody else's and the caller no operator."""
        self.must_be(self.controls_from(owner))

    def controls_from(self, owner: str) -> Role:
        """The least role that lets the caller control somebody's jobs."""
        return Role.SUBMITTER if owner == self.owner else Role.OPERATOR

    @property
    def role_name(self) -> str:
        return self.role.name.lower()

    def record(self, session: Session, target: str, **detail: Any) -> None:
        """Write into the audit log, with the change itself, that it was done. No secret may be in ``detail``."""
        if self.trail:
            self.trail.record(session, target, detail)

    def only_asks(self) -> None:
        """Say that the request changes nothing, though its route can."""
        if self.trail:
            self.trail.settled = True


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def text_of(authorization: str | None) -> str:
    """The token in a request's header; empty where there is none."""
    scheme, _, text = (authorization or "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def identify(database: Database, text: str, trail: Trail | None = None) -> Token | None:
    """The token with a text, whether it is valid or not; ``trail`` is told of it."""
    with database.read() as session:
        token = session.get(Token, sha256(text))
    return _noted(token, trail)


def identify_by_id(database: Database, token_id: str, trail: Trail | None = None) -> Token | None:
    """The token with an id, in the same way."""
    with database.read() as session:
        token = session.scalar(select(Token).where(Token.id == token_id))
    return _noted(token, trail)


def _noted(token: Token | None, trail: Trail | None) -> Token | None:
    if token and trail:
        trail.actor, trail.token_id = token.owner, token.id
    return token


def state_of(token: Token, moment: datetime) -> Literal["active", "ended", "revoked"]:
    """Whether a token is valid, and if not, why."""
    if token.revoked_at is not None:
        return "revoked"
    return "ended" if token.expires_at is not None and token.expires_at <= moment else "active"


def caller_of(database: Database, authorization: str | None, trail: Trail | None = None) -> Caller:
    """The owner of a request's token, looked up anew for each request; raises the API's 401."""
    text = text_of(authorization)
    if not text:
        raise ApiProblem(401, "unauthorized", "send the header Authorization: Bearer <token>")
    return _caller(identify(database, text, trail), trail)


def caller_by_id(database: Database, token_id: str, trail: Trail | None = None) -> Caller:
    """The owner of the token in whose name a session goes on; raises the API's 401."""
    return _caller(identify_by_id(database, token_id, trail), trail)


def _caller(token: Token | None, trail: Trail | None) -> Caller:
    if token is None:
        raise ApiProblem(401, "unauthorized", "this token is not known here")
    match state_of(token, now()):
        case "revoked":
            raise ApiProblem(401, "unauthorized", "this token was revoked: use another one")
        case "ended":
            raise ApiProblem(401, "unauthorized", f"this token ended at {token.expires_at:%Y-%m-%d %H:%M} UTC")
    if trail:
        trail.used_at = minute_of_use(token.last_used_at)
    return Caller(token.owner, Role[token.role.upper()], token.id, trail)


def still_valid(database: Database, caller: Caller) -> bool:
    """Whether the caller's token has neither ended nor been revoked since: for answers that go on for long."""
    with database.read() as session:
        token = session.scalar(select(Token).where(Token.id == caller.token_id))
    return token is not None and state_of(token, now()) == "active"


def ensure_token(database: Database, token: str, owner: str, role: Role, name: str = "") -> None:
    """Make a token known. One that was revoked, or has ended, stays so."""
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(f"a token needs at least {MIN_TOKEN_LENGTH} characters")
    with database.session() as session:
        session.merge(Token(sha256=sha256(token), owner=owner, role=role.name.lower(), name=name))


def ensure_admin(database: Database, file: Path) -> None:
    """Make the token in a file an admin's."""
    ensure_token(database, file.read_text().strip(), "admin", Role.ADMIN, "RCMAE_ADMIN_TOKEN_FILE")

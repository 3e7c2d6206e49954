"""Bearer tokens: known by their hash, with an owner and a role."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from service.db import Database, Token
from service.errors import ApiProblem

MIN_TOKEN_LENGTH = 16


class Role(IntEnum):
    """What a token's owner may do; each role may what those before it may."""

    VIEWER = 1
    """Read."""
    SUBMITTER = 2
    """Submit jobs, and control one's own."""
    OPERATOR = 3
    """Control everybody's."""
    ADMIN = 4


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    owner: str
    role: Role

    def must_be(self, role: Role) -> None:
        """Raises the API's 403."""
        if self.role < role:
            raise ApiProblem(
                403, "forbidden", f"a {role.name.lower()}'s token is needed; this one is a {self.role.name.lower()}'s"
            )

    def must_control(self, owner: str) -> None:
        """Raises the API's 403 where a job is somebody else's and the caller no operator."""
        self.must_be(Role.SUBMITTER if owner == self.owner else Role.OPERATOR)


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def caller_of(database: Database, authorization: str | None) -> Caller:
    """The owner of a request's token; raises the API's 401."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ApiProblem(401, "unauthorized", "send the header Authorization: Bearer <token>")
    with database.read() as session:
        known = session.get(Token, sha256(token.strip()))
        if known is None:
            raise ApiProblem(401, "unauthorized", "this token is not known here")
        return Caller(known.owner, Role[known.role.upper()])


def ensure_token(database: Database, token: str, owner: str, role: Role) -> None:
    """Make a token known."""
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(f"a token needs at least {MIN_TOKEN_LENGTH} characters")
    with database.session() as session:
        session.merge(Token(sha256=sha256(token), owner=owner, role=role.name.lower()))


def ensure_admin(database: Database, file: Path) -> None:
    """Make the token in a file an admin's."""
    ensure_token(database, file.read_text().strip(), "admin", Role.ADMIN)

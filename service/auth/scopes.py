"""What each role may see and what it may change: the one table behind every check, the API's description and the pages.

A scope is one right. Scopes of the family `read:…` let a token see something; the others let it change something. The
ending `!own` limits a scope to what the token's owner owns. A role has the scopes that `GRANTS` lists, and with each of
them the same scope limited to its owner's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final

OWN: Final = "!own"
READING: Final = "read:"


class Role(StrEnum):
    """The role of a token, which decides its scopes."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    ADMIN = "admin"


class Scope(StrEnum):
    """One right. `MEANINGS` describes it."""

    READ_JOBS = "read:jobs"
    READ_OWN_JOBS = "read:jobs!own"
    READ_BACKBONES = "read:backbones"
    READ_OWN_BACKBONES = "read:backbones!own"
    READ_CLUSTER = "read:cluster"
    READ_TOKENS = "read:tokens"
    READ_OWN_TOKENS = "read:tokens!own"
    READ_WEBHOOKS = "read:webhooks"
    READ_OWN_WEBHOOKS = "read:webhooks!own"
    READ_AUDIT = "read:audit"
    SUBMIT = "submit"
    JOBS = "jobs"
    OWN_JOBS = "jobs!own"
    BACKBONES = "backbones"
    OWN_BACKBONES = "backbones!own"
    TOKENS = "tokens"
    OWN_TOKENS = "tokens!own"
    WEBHOOKS = "webhooks"
    OWN_WEBHOOKS = "webhooks!own"

    @property
    def reads(self) -> bool:
        """Whether it lets a token see something; otherwise it lets it change something."""
        return self.startswith(READING)

    @property
    def own(self) -> Scope:
        """The scope limited to what the token's owner owns; itself if it has no such limit."""
        limited = self.value.removesuffix(OWN) + OWN
        return Scope(limited) if limited in _VALUES else self

    @property
    def everybodys(self) -> Scope:
        """The scope without that limit."""
        return Scope(self.value.removesuffix(OWN))


_VALUES: Final = frozenset(scope.value for scope in Scope)

MEANINGS: Final = {
    Scope.READ_JOBS: "see everybody's jobs and searches",
    Scope.READ_OWN_JOBS: "see its owner's jobs and searches",
    Scope.READ_BACKBONES: "see and pull everybody's backbones, private ones too",
    Scope.READ_OWN_BACKBONES: "see and pull backbones that are open to all or to its owner",
    Scope.READ_CLUSTER: "see the nodes and the queue, and plan jobs",
    Scope.READ_TOKENS: "see everybody's tokens",
    Scope.READ_OWN_TOKENS: "see its owner's tokens",
    Scope.READ_WEBHOOKS: "see everybody's webhooks and their deliveries",
    Scope.READ_OWN_WEBHOOKS: "see its owner's webhooks and their deliveries",
    Scope.READ_AUDIT: "read the audit log",
    Scope.SUBMIT: "submit jobs and promote trials",
    Scope.JOBS: "control, change and delete everybody's jobs and searches",
    Scope.OWN_JOBS: "control, change and delete its owner's jobs and searches",
    Scope.BACKBONES: "delete and describe everybody's backbones, set their aliases and owners, and see who uses them",
    Scope.OWN_BACKBONES: (
        "delete and describe its owner's backbones and versions, set their aliases and owners, and see who uses them"
    ),
    Scope.TOKENS: "make, rotate and revoke everybody's tokens",
    Scope.OWN_TOKENS: "make, rotate and revoke its owner's tokens",
    Scope.WEBHOOKS: "make, change, test and delete everybody's webhooks",
    Scope.OWN_WEBHOOKS: "make, change, test and delete its owner's webhooks",
}
"""What a token with a scope may do."""

BEYOND_OWN: Final = {Scope.READ_BACKBONES: "others' private backbones"}
"""What a scope adds to the same one limited to its owner's, where that is not all that others own."""

_EVERY_ROLE: Final = frozenset({Scope.READ_OWN_BACKBONES, Scope.READ_CLUSTER, Scope.READ_OWN_TOKENS})
_HOOKS: Final = frozenset({Scope.READ_OWN_WEBHOOKS, Scope.OWN_WEBHOOKS})
_OPERATOR: Final = (
    _EVERY_ROLE
    | _HOOKS
    | {Scope.READ_JOBS, Scope.READ_BACKBONES, Scope.SUBMIT, Scope.JOBS, Scope.BACKBONES, Scope.OWN_TOKENS}
)

GRANTS: Final = {
    Role.VIEWER: _EVERY_ROLE | {Scope.READ_JOBS},
    Role.SUBMITTER: _EVERY_ROLE
    | _HOOKS
    | {Scope.READ_OWN_JOBS, Scope.SUBMIT, Scope.OWN_JOBS, Scope.OWN_BACKBONES, Scope.OWN_TOKENS},
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _OPERATOR | {Scope.READ_TOKENS, Scope.READ_WEBHOOKS, Scope.READ_AUDIT, Scope.TOKENS, Scope.WEBHOOKS},
}
"""The scopes of each role."""

SCOPES: Final = {role: granted | {scope.own for scope in granted} for role, granted in GRANTS.items()}
"""The scopes of each role, with those that follow from others."""

UNSCOPED: Final = frozenset(
    {
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /openapi.json",
        "GET /docs",
        "GET /docs/assets/start.js",
        "GET /docs/assets/{path:path}",
        "GET /assets/{digest}/{name:path}",
        "GET /login",
        "POST /login",
        "POST /logout",
    }
)
"""The routes that need no scope: those for monitors, the documentation, the pages' files, and those that begin and end
a session. Every other route declares the scopes that it needs."""


def roles_with(scopes: Iterable[Scope]) -> list[Role]:
    """The roles that have all of these scopes."""
    needed = frozenset(scopes)
    return [role for role in Role if needed <= SCOPES[role]]


def grantable(role: Role) -> list[Role]:
    """The roles that a token of this role can give to a new token: those without a scope that it lacks itself."""
    return [each for each in Role if Scope.OWN_TOKENS in SCOPES[role] and SCOPES[each] <= SCOPES[role]]


def revocable(role: Role) -> list[Role]:
    """The roles of the tokens that a token of this role can revoke: those that change nothing beyond its own reach."""
    return [each for each in Role if Scope.OWN_TOKENS in SCOPES[role] and _changing(each) <= _changing(role)]


def described(role: Role) -> str:
    """What distinguishes a role's tokens from those that can do the least, in one line."""
    return ", ".join(MEANINGS[scope] for scope in Scope if scope in GRANTS[role] - _EVERY_ROLE)


def named(roles: Collection[Role]) -> str:
    """Roles in a sentence: `operator or admin`."""
    *others, last = roles
    return f"{', '.join(others)} or {last}" if others else str(last)


def requirement(scopes: Iterable[Scope]) -> str:
    """What a route with these scopes needs, in one sentence for each scope."""
    sentences = []
    for scope in scopes:
        text = f"Needs the scope `{scope}` (roles: {', '.join(roles_with([scope]))})"
        if scope.everybodys is not scope:
            more = BEYOND_OWN.get(scope.everybodys, "what others own")
            text += f"; for {more} `{scope.everybodys}` ({', '.join(roles_with([scope.everybodys]))})"
        sentences.append(f"{text}.")
    return " ".join(sentences)


def _changing(role: Role) -> frozenset[Scope]:
    return frozenset(scope for scope in SCOPES[role] if not scope.reads)

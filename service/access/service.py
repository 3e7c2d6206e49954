"""Operations on tokens and the audit log. A request is one transaction."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from service.access import repository
from service.access.repository import AuditFilters
from service.access.schemas import LONGEST_DAYS, AuditView, NewTokenView, RotateBody, TokenBody, TokenView
from service.auth.caller import Caller, sha256, validity_of
from service.auth.scopes import MEANINGS, SCOPES, Role, Scope, grantable, revocable
from service.auth.sessions import end_all
from service.context.app_state import AppState
from service.db.tables import Token, now
from service.http.problems import ApiProblem, not_found, spec_problem
from service.http.schemas import Page
from trainer.spec.base import Problem

PREFIX: Final = "rcmae_"
"""The prefix of every token's text, by which scanners for leaked secrets recognise it."""


def tokens(state: AppState, caller: Caller, owner: str | None, limit: int, cursor: str | None) -> Page[TokenView]:
    """The caller's own tokens; for admins all tokens, or one owner's."""
    owners = {each for each in (owner, caller.only_owner(Scope.READ_TOKENS)) if each}
    with state.database.read() as session:
        rows, next_cursor = repository.tokens(session, owners, limit, cursor)
    moment = now()
    return Page[TokenView](items=[view(token, moment) for token in rows], next_cursor=next_cursor)


def create_token(state: AppState, caller: Caller, body: TokenBody) -> NewTokenView:
    """Create a token.

    Raises 403 if it would belong to somebody else, or do or see more than the caller's, and 422 if its expiry is
    invalid.
    """
    caller.must_have(Scope.OWN_TOKENS)
    owner, role, moment = body.owner or caller.owner, Role(body.role), now()
    if not caller.may(Scope.TOKENS, owner):
        text = f"only admins create tokens for others: leave owner out, or set it to {caller.owner}"
        raise ApiProblem(403, "forbidden", text)
    _must_grant(caller, role)
    with state.database.session() as session:
        expires_at = _expiry(session, caller, body, moment)
        token = Token(owner=owner, role=body.role, name=body.name, expires_at=expires_at)
        return _create(session, caller, token, moment)


def rotate_token(state: AppState, caller: Caller, token_id: str, body: RotateBody) -> NewTokenView:
    """Replace a token. Raises 403 and 404 as for revoking, 403 as for creating, and 409 if it is no longer valid."""
    moment = now()
    with state.database.session() as session:
        old = _revocable_token(session, caller, token_id)
        _must_grant(caller, Role(old.role))
        validity = validity_of(old, moment)
        if validity != "active":
            raise ApiProblem(409, "token_ended", f"{token_id} is {validity}: create a new token")
        _must_not_outlive(session, caller, old.expires_at)
        new = Token(owner=old.owner, role=old.role, name=old.name, expires_at=old.expires_at)
        created = _create(session, caller, new, moment, replaced=old.id)
        if body.grace_s:
            grace_end = moment + timedelta(seconds=body.grace_s)
            old.expires_at = min(grace_end, old.expires_at) if old.expires_at else grace_end
        else:
            old.revoked_at = moment
            end_all(session, old.id)
        return created


def revoke_token(state: AppState, caller: Caller, token_id: str) -> TokenView:
    """Revoke a token; one that is revoked already stays as it is.

    Raises 404 for a token that the caller may not see, 403 for one of a higher role, 409 for the last admin token that
    does not expire.
    """
    moment = now()
    with state.database.session() as session:
        token = _revocable_token(session, caller, token_id)
        _must_leave_an_admin(session, token, moment)
        token.revoked_at = token.revoked_at or moment
        end_all(session, token.id)
        caller.record(session, token.id, owner=token.owner, role=token.role)
        return view(token, moment)


def audit(state: AppState, caller: Caller, filters: AuditFilters, limit: int, cursor: str | None) -> Page[AuditView]:
    """Entries of the audit log, newest first. Raises 403 without the scope."""
    caller.must_have(Scope.READ_AUDIT)
    with state.database.read() as session:
        entries, next_cursor = repository.audit(session, filters, limit, cursor)
    items = [AuditView.model_validate(entry, from_attributes=True) for entry in entries]
    return Page[AuditView](items=items, next_cursor=next_cursor)


def view(token: Token, moment: datetime) -> TokenView:
    """A token as the API shows it."""
    fields = {name: getattr(token, name) for name in TokenView.model_fields if name != "state"}
    return TokenView.model_validate(fields | {"state": validity_of(token, moment)})


def _create(
    session: Session, caller: Caller, token: Token, moment: datetime, replaced: str | None = None
) -> NewTokenView:
    """Store a token with a new text. Its audit entry has the id of the token that it replaces, if any, as target."""
    text = PREFIX + secrets.token_urlsafe(32)
    token.sha256 = sha256(text)
    session.add(token)
    session.flush()
    ends = token.expires_at.isoformat() if token.expires_at else None
    detail = {"token": token.id, "owner": token.owner, "role": token.role, "name": token.name, "ends": ends}
    caller.record(session, replaced or token.id, **detail)
    return NewTokenView(**vars(view(token, moment)), token=text)


def _revocable_token(session: Session, caller: Caller, token_id: str) -> Token:
    """A token that the caller may revoke. Raises the API's 403 and 404."""
    caller.must_have(Scope.OWN_TOKENS)
    token = repository.token(session, token_id)
    if token is None or not caller.may(Scope.READ_TOKENS, token.owner):
        raise not_found("token", token_id)
    caller.must(Scope.TOKENS, token.owner)
    if token.role not in revocable(caller.role):
        text = f"a {caller.role} token cannot replace or revoke a token of the role {token.role}, which may do more"
        raise ApiProblem(403, "forbidden", text)
    return token


def _must_leave_an_admin(session: Session, token: Token, moment: datetime) -> None:
    """Raises the API's 409 if nobody would be an admin without a token, or nobody for longer than until an expiry."""
    if token.role != Role.ADMIN or validity_of(token, moment) != "active":
        return
    others = repository.other_admins(session, token.id, moment)
    if not others or (token.expires_at is None and all(other.expires_at for other in others)):
        last = "the last admin token" + ("" if token.expires_at else " that does not expire")
        text = (
            f"{token.id} is {last}: first create another one, with "
            "`rcmae tokens create --role admin` or POST /v1/tokens, or rotate this one instead"
        )
        raise ApiProblem(409, "last_admin", text)


def _must_grant(caller: Caller, role: Role) -> None:
    """Raises the API's 403 if a token of this role would have a scope that the caller's lacks."""
    more = [scope for scope in Scope if scope in SCOPES[role] - SCOPES[caller.role]]
    if not more:
        return
    text = (
        f"a {caller.role} token cannot create a token of the role {role}, which may also {MEANINGS[more[0]]}: "
        f"it can create {', '.join(grantable(caller.role))}; for others ask an administrator"
    )
    raise ApiProblem(403, "forbidden", text)


def _expiry(session: Session, caller: Caller, body: TokenBody, moment: datetime) -> datetime | None:
    """When a new token expires; None is never. Raises the API's 403 and 422."""
    expires_at = moment + timedelta(days=body.expires_in_days) if body.expires_in_days else body.expires_at
    if expires_at is None and not caller.has(Scope.TOKENS):
        return _caller_expiry(session, caller)
    if expires_at is not None and not moment < expires_at <= moment + timedelta(days=LONGEST_DAYS):
        text = f"must be in the future, and within {LONGEST_DAYS} days: leave it out for a longer life"
        raise spec_problem([Problem("expires_at", "/expires_at", expires_at.isoformat(), text)])
    _must_not_outlive(session, caller, expires_at)
    return expires_at


def _must_not_outlive(session: Session, caller: Caller, expires_at: datetime | None) -> None:
    """Raises the API's 403 if a new token would expire later than the caller's own, unless that manages everybody's."""
    own = None if caller.has(Scope.TOKENS) else _caller_expiry(session, caller)
    if own is not None and (expires_at is None or expires_at > own):
        text = f"your own token expires at {own:%Y-%m-%d %H:%M} UTC, and a token created with it cannot expire later"
        raise ApiProblem(403, "forbidden", text)


def _caller_expiry(session: Session, caller: Caller) -> datetime | None:
    own = repository.token(session, caller.token_id) if caller.token_id else None
    return own.expires_at if own else None

"""What the routes of tokens and of the audit log do. A request is one transaction."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from service.access import repository
from service.access.repository import AuditFilters
from service.access.schemas import LONGEST_DAYS, AuditView, NewTokenView, RotateBody, TokenBody, TokenView
from service.auth.caller import Caller, Role, sha256, state_of
from service.context.app_state import AppState
from service.db.tables import Token, now
from service.http.problems import ApiProblem, not_found, spec_problem
from service.http.schemas import Page
from trainer.spec.base import Problem

PREFIX: Final = "rcmae_"
"""What every token's text begins with, so that scanners for leaked secrets can tell it."""


def tokens(parts: AppState, caller: Caller, owner: str | None, limit: int, cursor: str | None) -> Page[TokenView]:
    """One's own, and for admins everybody's or one owner's."""
    owners = {owner} if owner else set()
    if caller.role is not Role.ADMIN:
        owners.add(caller.owner)
    with parts.database.read() as session:
        found, following = repository.tokens(session, owners, limit, cursor)
    moment = now()
    return Page[TokenView](items=[view(token, moment) for token in found], next_cursor=following)


def create_token(parts: AppState, caller: Caller, body: TokenBody) -> NewTokenView:
    """Raises 403 where it would be another's, or do or see more than the caller's, and 422 where its end is none."""
    caller.must_be(Role.SUBMITTER)
    owner, role, moment = body.owner or caller.owner, Role[body.role.upper()], now()
    if owner != caller.owner and caller.role is not Role.ADMIN:
        raise ApiProblem(
            403, "forbidden", f"only admins make tokens for others: leave owner out, or say {caller.owner}"
        )
    _must_grant(caller, role)
    with parts.database.session() as session:
        ends = _end(session, caller, body, moment)
        return _make(session, caller, Token(owner=owner, role=body.role, name=body.name, expires_at=ends), moment)


def rotate_token(parts: AppState, caller: Caller, token_id: str, body: RotateBody) -> NewTokenView:
    """Raises 403 and 404 as for revoking, 403 also as for making one, and 409 where the token is no longer valid."""
    moment = now()
    with parts.database.session() as session:
        old = _token(session, caller, token_id)
        _must_grant(caller, Role[old.role.upper()])
        state = state_of(old, moment)
        if state != "active":
            raise ApiProblem(409, "token_ended", f"{token_id} is {state}: make a new one")
        _must_not_outlive(session, caller, old.expires_at)
        new = Token(owner=old.owner, role=old.role, name=old.name, expires_at=old.expires_at)
        made = _make(session, caller, new, moment, replaced=old.id)
        if body.grace_s:
            end = moment + timedelta(seconds=body.grace_s)
            old.expires_at = min(end, old.expires_at) if old.expires_at else end
        else:
            old.revoked_at = moment
        return made


def revoke_token(parts: AppState, caller: Caller, token_id: str) -> TokenView:
    """Raises 404 for a token that is not there for the caller, 403 for one of a higher role, 409 for the last admin's.

    One that has been revoked stays as it is.
    """
    moment = now()
    with parts.database.session() as session:
        token = _token(session, caller, token_id)
        last = token.role == "admin" and repository.other_admins(session, token.id, moment) == 0
        if last and state_of(token, moment) == "active":
            raise ApiProblem(409, "last_admin", f"{token_id} is the last admin's token: make another one first")
        token.revoked_at = token.revoked_at or moment
        caller.record(session, token.id, owner=token.owner, role=token.role)
        return view(token, moment)


def audit(parts: AppState, caller: Caller, filters: AuditFilters, limit: int, cursor: str | None) -> Page[AuditView]:
    caller.must_be(Role.ADMIN)
    with parts.database.read() as session:
        found, following = repository.audit(session, filters, limit, cursor)
    items = [AuditView.model_validate(line, from_attributes=True) for line in found]
    return Page[AuditView](items=items, next_cursor=following)


def view(token: Token, moment: datetime) -> TokenView:
    """A token as the API shows it."""
    fields = {name: getattr(token, name) for name in TokenView.model_fields if name != "state"}
    return TokenView.model_validate(fields | {"state": state_of(token, moment)})


def _make(session: Session, caller: Caller, token: Token, moment: datetime, **detail: str) -> NewTokenView:
    """Add a token with a new text, and its line in the audit log: under the one that it replaces, if it does."""
    text = PREFIX + secrets.token_urlsafe(32)
    token.sha256 = sha256(text)
    session.add(token)
    session.flush()
    ends = token.expires_at.isoformat() if token.expires_at else None
    target = detail.get("replaced", token.id)
    caller.record(session, target, token=token.id, owner=token.owner, role=token.role, name=token.name, ends=ends)
    return NewTokenView(**vars(view(token, moment)), token=text)


def _token(session: Session, caller: Caller, token_id: str) -> Token:
    """A token that the caller may end; raises the API's 403 and 404."""
    caller.must_be(Role.SUBMITTER)
    token = repository.token(session, token_id)
    if token is None or (caller.role is not Role.ADMIN and token.owner != caller.owner):
        raise not_found("token", token_id)
    if Role[token.role.upper()] > caller.role:
        text = f"a token of the role {caller.role_name} cannot replace or end one of the role {token.role}"
        raise ApiProblem(403, "forbidden", text)
    return token


def _must_grant(caller: Caller, role: Role) -> None:
    """A new token neither does nor sees more than the one that makes it: raises the API's 403."""
    can_grant = caller.role.can_grant
    if role in can_grant:
        return
    more = "may do more" if role > caller.role else "sees everybody's jobs"
    text = (
        f"a token of the role {caller.role_name} cannot make one of the role {role.name.lower()}, which {more}: "
        f"it can make {', '.join(each.name.lower() for each in can_grant)}; for others ask an administrator"
    )
    raise ApiProblem(403, "forbidden", text)


def _end(session: Session, caller: Caller, body: TokenBody, moment: datetime) -> datetime | None:
    """When a new token ends; raises the API's 403 and 422."""
    ends = moment + timedelta(days=body.expires_in_days) if body.expires_in_days else body.expires_at
    if ends is None and caller.role is not Role.ADMIN:
        return _own_end(session, caller)
    if ends is not None and not moment < ends <= moment + timedelta(days=LONGEST_DAYS):
        text = f"must lie ahead, and within {LONGEST_DAYS} days: for longer, leave it out"
        raise spec_problem([Problem("expires_at", "/expires_at", ends.isoformat(), text)])
    _must_not_outlive(session, caller, ends)
    return ends


def _must_not_outlive(session: Session, caller: Caller, ends: datetime | None) -> None:
    """Whoever holds a token for a while does not get one for longer by it: raises the API's 403."""
    own = None if caller.role is Role.ADMIN else _own_end(session, caller)
    if own is not None and (ends is None or ends > own):
        text = f"the token of this request ends at {own:%Y-%m-%d %H:%M} UTC, and what it makes ends no later"
        raise ApiProblem(403, "forbidden", text)


def _own_end(session: Session, caller: Caller) -> datetime | None:
    own = repository.token(session, caller.token_id) if caller.token_id else None
    return own.expires_at if own else None

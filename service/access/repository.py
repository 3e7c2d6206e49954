"""Queries for tokens and the audit log. Every function works inside its caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from service.auth.scopes import Role
from service.db.tables import Audit, Token
from service.http.paging import read_moment, read_number, utc, write_cursor


@dataclass(frozen=True)
class AuditFilters:
    """Filters of the audit log; all are applied in SQL. Times without a zone are UTC."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    after: datetime | None = None
    before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        columns = ((Audit.actor, self.actor), (Audit.action, self.action), (Audit.target, self.target))
        conditions: list[ColumnElement[bool]] = [column == value for column, value in columns if value is not None]
        if self.after:
            conditions.append(Audit.time > utc(self.after))
        if self.before:
            conditions.append(Audit.time < utc(self.before))
        return conditions


def audit(session: Session, filters: AuditFilters, limit: int, cursor: str | None) -> tuple[list[Audit], str | None]:
    """One page of entries, newest first, and the cursor of the next page."""
    query = select(Audit).where(*filters.conditions())
    if cursor:
        query = query.where(Audit.id < read_number(cursor))
    rows = list(session.scalars(query.order_by(Audit.id.desc()).limit(limit + 1)))
    return rows[:limit], write_cursor([rows[limit - 1].id]) if len(rows) > limit else None


def tokens(session: Session, owners: set[str], limit: int, cursor: str | None) -> tuple[list[Token], str | None]:
    """One page of tokens, newest first, and the cursor of the next page.

    A token must belong to every owner in ``owners``; with none it may be anybody's.
    """
    query = select(Token).where(*(Token.owner == owner for owner in sorted(owners)))
    if cursor:
        moment, token_id = read_moment(cursor)
        query = query.where(or_(Token.created_at < moment, and_(Token.created_at == moment, Token.id < token_id)))
    rows = list(session.scalars(query.order_by(Token.created_at.desc(), Token.id.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], write_cursor([rows[limit - 1].created_at.isoformat(), rows[limit - 1].id])


def token(session: Session, token_id: str) -> Token | None:
    return session.scalar(select(Token).where(Token.id == token_id))


def other_admins(session: Session, token_id: str, moment: datetime) -> list[Token]:
    """The other admin tokens that are valid at a moment."""
    query = select(Token).where(
        Token.role == Role.ADMIN,
        Token.id != token_id,
        Token.revoked_at.is_(None),
        or_(Token.expires_at.is_(None), Token.expires_at > moment),
    )
    return list(session.scalars(query))

"""Reading tokens and the audit log. Every function works inside its caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from service.db.tables import Audit, Token
from service.http.paging import read_moment, read_number, utc, write_cursor


@dataclass(frozen=True)
class AuditFilters:
    """What the audit log is narrowed to; all in SQL."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    after: datetime | None = None
    before: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        wanted = ((Audit.actor, self.actor), (Audit.action, self.action), (Audit.target, self.target))
        found: list[ColumnElement[bool]] = [column == value for column, value in wanted if value is not None]
        if self.after:
            found.append(Audit.time > utc(self.after))
        if self.before:
            found.append(Audit.time < utc(self.before))
        return found


def audit(session: Session, filters: AuditFilters, limit: int, cursor: str | None) -> tuple[list[Audit], str | None]:
    """Lines, newest first, and the cursor of those that follow."""
    query = select(Audit).where(*filters.conditions())
    if cursor:
        query = query.where(Audit.id < read_number(cursor))
    found = list(session.scalars(query.order_by(Audit.id.desc()).limit(limit + 1)))
    return found[:limit], write_cursor([found[limit - 1].id]) if len(found) > limit else None


def tokens(session: Session, owners: set[str], limit: int, cursor: str | None) -> tuple[list[Token], str | None]:
    """Tokens, newest first, and the cursor of those that follow; of every owner who is named, or of all."""
    query = select(Token).where(*(Token.owner == owner for owner in sorted(owners)))
    if cursor:
        moment, token_id = read_moment(cursor)
        query = query.where(or_(Token.created_at < moment, and_(Token.created_at == moment, Token.id < token_id)))
    found = list(session.scalars(query.order_by(Token.created_at.desc(), Token.id.desc()).limit(limit + 1)))
    if len(found) <= limit:
        return found, None
    return found[:limit], write_cursor([found[limit - 1].created_at.isoformat(), found[limit - 1].id])


def token(session: Session, token_id: str) -> Token | None:
    return session.scalar(select(Token).where(Token.id == token_id))


def other_admins(session: Session, token_id: str, moment: datetime) -> int:
    """Admins' tokens beside one that are valid at a moment."""
    query = select(func.count()).where(
        Token.role == "admin",
        Token.id != token_id,
        Token.revoked_at.is_(None),
        or_(Token.expires_at.is_(None), Token.expires_at > moment),
    )
    return session.scalar(query) or 0

"""Who sees a backbone: the one place that decides it, as conditions of SQL that a row of a backbone meets.

A backbone that is open to all is seen by everybody. A private one is seen by its owner, by the owners of its versions,
by the readers that it names, and by roles with the scope `read:backbones`. To register a version of it makes one of its
owners, so that is for its owners and for roles with the scope `backbones`, not for readers.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from service.auth.caller import Caller, has_valid_token
from service.auth.scopes import Scope, roles_with
from service.db.tables import BackboneReader, BackboneVersion, RegisteredBackbone

ALL: Final = "all"
"""The visibility of backbones that everybody sees."""
OWNERS: Final = "owners"
READERS: Final = "readers"
"""That of private ones which name readers."""


def seen(caller: Caller) -> list[ColumnElement[bool]]:
    """What the row of each backbone meets that a caller sees."""
    return [] if caller.has(Scope.READ_BACKBONES) else [_open_to(caller.owner)]


def seen_by(owner: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether somebody, or whoever a column names, sees the backbone of a row with one of their valid tokens."""
    return or_(_open_to(owner), has_valid_token(owner, roles_with([Scope.READ_BACKBONES])))


def joined_by(caller: Caller) -> list[ColumnElement[bool]]:
    """What the row of each backbone meets of which a caller's job may register a version."""
    return [] if caller.has(Scope.BACKBONES) else [_joined_by(caller.owner)]


def joined_by_owner(owner: InstrumentedAttribute[str], since: InstrumentedAttribute[datetime]) -> ColumnElement[bool]:
    """The same of the jobs of a query, by the columns of their owners and of the moments since which tokens count that
    have ended meanwhile.
    """
    return or_(_joined_by(owner), has_valid_token(owner, roles_with([Scope.BACKBONES]), since))


def _open_to(owner: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether the backbone of a row is open to an owner of tokens, whatever their roles."""
    row, reader = RegisteredBackbone, aliased(BackboneReader)
    named = select(reader.name).where(reader.name == row.name, reader.reader == owner)
    # The row, and the column that names an owner, may be of queries further out than the next one.
    return or_(_joined_by(owner), named.correlate_except(reader).exists())


def _joined_by(owner: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether the backbone of a row is open to all, or belongs to an owner of tokens, if with one of its versions."""
    row, version = RegisteredBackbone, aliased(BackboneVersion)
    # Each version that is not deleted counts, also one that cannot be pulled any more.
    own = select(version.name).where(version.name == row.name, version.owner == owner, version.deleted_at.is_(None))
    return or_(row.visibility == ALL, row.owner == owner, own.correlate_except(version).exists())

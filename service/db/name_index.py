"""The index of Postgres that finds jobs by a part of their names. Its extension is one that not every role may create.

Without it, such a search reads the name of every job. So it is no migration: every start of the service makes the index
if it is missing and can be made, and says so if it cannot.
"""

from __future__ import annotations

from typing import Final

import structlog
from sqlalchemy import Connection, exc, text

log = structlog.get_logger()

NAME_INDEX: Final = "ix_job_name_trigrams"
REMEDY: Final = "let a superuser run CREATE EXTENSION pg_trgm in the database, then restart the service"
IMPOSSIBLE: Final = frozenset({"42501", "0A000", "58P01", "42704"})
"""Postgres's states of a missing right, an extension that is not installed, and operators out of the role's reach."""


def names_are_indexed(connection: Connection) -> bool:
    """Whether the index exists; true for SQLite, which has no such index."""
    if connection.dialect.name == "sqlite":
        return True
    return connection.scalar(text("SELECT to_regclass(:name)"), {"name": NAME_INDEX}) is not None


def index_names(connection: Connection) -> None:
    """Make the index if it is missing and the role can make it. It takes a second for 100,000 jobs."""
    if names_are_indexed(connection):
        return
    try:
        with connection.begin_nested():
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
            connection.execute(text(f"CREATE INDEX {NAME_INDEX} ON job USING gin (name gin_trgm_ops)"))
    except exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in IMPOSSIBLE:
            raise
        reason = " ".join(str(error.orig).split())
        log.warning("names_not_indexed", detail=f"a search by name reads every job: {reason}", remedy=REMEDY)

"""Engines for SQLite and Postgres: which URLs are accepted, and how connections are configured.

A transaction is a writer unless its options say `read_only`. Either kind of database has one writer at a time.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine import URL

BUSY_SECONDS: Final = 20
"""How long a writer waits for another one in SQLite."""
POSTGRES: Final[dict[str, int | str]] = {
    "application_name": "rcmae",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's defaults for parameters that the URL does not set; they detect a dead host. Times are in seconds, except the
last, which is in milliseconds."""
POSTGRES_SETTINGS: Final = {
    "statement_timeout": "30s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
}
"""Server settings of our sessions, so that nothing waits for ever. A writer that hangs or is lost is ended before those
that wait for it give up."""
MIGRATION_LIMIT: Final = "10min"
JSON_FORMAT: Final[dict[str, Any]] = {
    "json_serializer": partial(json.dumps, separators=(",", ":")),  # lists of jobs answer with the stored text
    "json_deserializer": from_json,  # takes a third of the time of Python's own
}
WRITERS: Final = 0x72636D6165
"""Key of the advisory lock in Postgres that every writer holds."""


class DatabaseUrlError(ValueError):
    """`RCMAE_DATABASE_URL` is invalid. The text says why, without the URL's password."""


def parse_database_url(url: str) -> URL:
    """A database's parsed URL. Raises `DatabaseUrlError`."""
    forms = "write sqlite:////folder/rcmae.db or postgresql+psycopg://user:password@host:5432/name"
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:  # its text may hold the password
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL is not a database URL: {forms}") from error
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "postgresql+psycopg"}:
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL begins with {parsed.drivername}://, which is unsupported: {forms}")
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL names no database: {forms}")
    return parsed


def masked_url(url: URL) -> str:
    """A database's URL without its password and query, for messages and logs."""
    return url.set(query={}).render_as_string(hide_password=True)


def postgres(url: URL) -> Engine:
    """An engine for a Postgres database."""
    settings = " ".join(f"-c {name}={value}" for name, value in POSTGRES_SETTINGS.items())
    url_options = url.query.get("options", ())  # these come after ours: the last value of a setting counts
    options = " ".join([settings, *((url_options,) if isinstance(url_options, str) else url_options)])
    arguments = {name: value for name, value in POSTGRES.items() if name not in url.query}
    engine = create_engine(
        url.difference_update_query(["options"]),
        connect_args=arguments | {"options": options},
        hide_parameters=True,  # keeps values out of errors, which are logged
        **JSON_FORMAT,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        pool_recycle=1800,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("migration"):
            for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                connection.exec_driver_sql(f"SET LOCAL {setting} = '{MIGRATION_LIMIT}'")
        if not options.get("read_only"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")

    return engine


def sqlite(url: URL) -> Engine:
    """An engine for a SQLite file."""
    arguments = {"timeout": BUSY_SECONDS}
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, pool_size=10, **JSON_FORMAT)

    @event.listens_for(engine, "connect")
    def settings(connection: Any, record: object) -> None:  # noqa: ARG001
        connection.isolation_level = None  # stops sqlite3 from beginning transactions itself: see "begin" below
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # Immediate: otherwise a transaction that reads before it writes fails at once if another one writes.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine

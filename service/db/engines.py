"""Connections to SQLite and to Postgres: what a database's URL may be, and how each is set up.

A transaction that is not told to be `read_only` begins as a writer: in either database there is one at a time.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine import URL

BUSY_SECONDS: Final = 20
"""How long a writer waits for another in SQLite."""
POSTGRES: Final[dict[str, int | str]] = {
    "application_name": "rcmae",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's parameters where the URL has no others, times in seconds but the last: a host that has gone is noticed."""
POSTGRES_SETTINGS: Final = {
    "statement_timeout": "30s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
}
"""The server's, for our sessions: nothing waits for ever. A writer that was stopped or lost ends before those that wait
for it give up."""
MIGRATION_LIMIT: Final = "10min"
WRITERS: Final = 0x72636D6165
"""The number of the lock in Postgres that every writer holds."""


class DatabaseUrlError(ValueError):
    """`RCMAE_DATABASE_URL` cannot be used; the text says why, without the URL's password."""


def parse_database_url(url: str) -> URL:
    """The parts of a database's URL; raises `DatabaseUrlError`."""
    forms = "write sqlite:////folder/rcmae.db or postgresql+psycopg://user:password@host:5432/name"
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:  # its text may hold the password
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL is not a database's URL: {forms}") from error
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "postgresql+psycopg"}:
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL begins with {parsed.drivername}://, which is not served: {forms}")
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL names no database: {forms}")
    return parsed


def shown(url: URL) -> str:
    """A database's URL as people may see it."""
    return url.set(query={}).render_as_string(hide_password=True)


def postgres(url: URL) -> Engine:
    settings = " ".join(f"-c {name}={value}" for name, value in POSTGRES_SETTINGS.items())
    own = url.query.get("options", ())  # after ours: of two values of a setting the last counts
    options = " ".join([settings, *((own,) if isinstance(own, str) else own)])
    arguments = {name: value for name, value in POSTGRES.items() if name not in url.query}
    engine = create_engine(
        url.difference_update_query(["options"]),
        connect_args=arguments | {"options": options},
        hide_parameters=True,  # errors go into the log
        json_deserializer=from_json,
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
    # `from_json` takes a third of the time of Python's own, which is most of a list's.
    arguments = {"timeout": BUSY_SECONDS}
    engine = create_engine(url, connect_args=arguments, hide_parameters=True, json_deserializer=from_json, pool_size=10)

    @event.listens_for(engine, "connect")
    def settings(connection: Any, record: object) -> None:  # noqa: ARG001
        connection.isolation_level = None  # sqlite3 would begin late and only before writes: see "begin" below
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # Immediate: a transaction that reads first and writes later would else fail at once when another writes.
        reads = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine

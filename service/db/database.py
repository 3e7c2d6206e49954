"""The control plane's database: its sessions and migrations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    Connection,
    exc,
)
from sqlalchemy.orm import Session, sessionmaker

from service.db.engines import BUSY_SECONDS, masked_url, parse_database_url, postgres, sqlite
from service.db.name_index import index_names


class DatabaseUnreachable(Exception):
    """The database is unreachable, or was too busy to respond in time.

    The transaction changed nothing, unless the connection broke during the commit.
    """


class Database:
    """An engine and its sessions; every method raises `DatabaseUnreachable`."""

    def __init__(self, url: str) -> None:
        """Connects on first use. Raises `DatabaseUrlError`."""
        parsed = parse_database_url(url)
        self.masked_url = masked_url(parsed)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = sqlite(parsed) if self.is_sqlite else postgres(parsed)
        several: dict[str, Any] = {"read_only": True}
        single: dict[str, Any] = {"read_only": True}
        if not self.is_sqlite:
            # Makes a reader see one snapshot and change nothing, as in SQLite; one query sees one by itself.
            several |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            single |= {"isolation_level": "AUTOCOMMIT"}
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(self.engine.execution_options(**several), expire_on_commit=False)
        self._askers = sessionmaker(self.engine.execution_options(**single), expire_on_commit=False)
        self._writer_lock = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that changes nothing and waits for no writer."""
        with self._connection_errors(), self._readers.begin() as session:
            yield session

    @contextmanager
    def query(self) -> Iterator[Session]:
        """For a single query, which sees one snapshot by itself. On Postgres it takes little more than half the time of
        `read`, which also begins and ends a transaction.
        """
        with self._connection_errors(), self._askers.begin() as session:
            yield session

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One write transaction: committed at the end, rolled back on an exception.

        Only one is open at a time, in either kind of database. What it has read stays true until it ends, and row
        numbers follow the order of commits. So it must not do anything slow.
        """
        with self._sole_writer(), self._connection_errors(), self._sessions.begin() as session:
            yield session

    @contextmanager
    def _sole_writer(self) -> Iterator[None]:
        """Queues the threads of this process: SQLite's own waiting is polling, which is unfair to those that sleep."""
        if not self.is_sqlite:
            yield
            return
        if not self._writer_lock.acquire(timeout=BUSY_SECONDS):
            raise DatabaseUnreachable(f"{self.masked_url}: other changes took more than {BUSY_SECONDS} s")
        try:
            yield
        finally:
            self._writer_lock.release()

    def migrate(self) -> None:
        """Upgrade the schema. If several processes call this at once, one does it and the others wait."""
        config = migration_config()
        with self.migration() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            index_names(connection)

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """A write transaction that may change the schema."""
        with self._connection_errors(), self.engine.connect().execution_options(migration=True) as connection:
            guard = _without_foreign_keys(connection) if self.is_sqlite else nullcontext()
            with guard, connection.begin():
                yield connection

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        """Turns errors of the connection into `DatabaseUnreachable`."""
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
            text = " ".join(str(getattr(error, "orig", None) or error).split())
            raise DatabaseUnreachable(f"{self.masked_url}: {text}") from error


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """Turns foreign keys off: to alter a table, SQLite recreates it, and dropping the old one would delete its
    dependants.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def migration_config() -> Config:
    """Alembic's configuration for this package's migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config

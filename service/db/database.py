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

from service.db.engines import BUSY_SECONDS, parse_database_url, postgres, shown, sqlite


class DatabaseUnreachable(Exception):
    """The database is away, or was too busy to answer in time.

    The transaction changed nothing, unless the connection broke in the very moment of its commit.
    """


class Database:
    """An engine and its sessions; every method raises `DatabaseUnreachable`."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet. Raises `DatabaseUrlError`."""
        parsed = parse_database_url(url)
        self.shown = shown(parsed)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = sqlite(parsed) if self.is_sqlite else postgres(parsed)
        reading: dict[str, Any] = {"read_only": True}
        if not self.is_sqlite:  # there too a reader sees one state of the database, and cannot change it
            reading |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._sessions, self._turns = sessionmaker(self.engine, expire_on_commit=False), threading.Lock()
        self._readers = sessionmaker(self.engine.execution_options(**reading), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that changes nothing and waits for no writer."""
        with self._reached(), self._readers.begin() as session:
            yield session

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception.

        There is one at a time, in every database: what it has read stays true until it ends, and rows are numbered in
        the order in which others see them. So nothing slow belongs in it.
        """
        with self._turn(), self._reached(), self._sessions.begin() as session:
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """SQLite lets write who asks in the right moment, while others sleep: threads of a process take turns."""
        if not self.is_sqlite:
            yield
            return
        if not self._turns.acquire(timeout=BUSY_SECONDS):
            raise DatabaseUnreachable(f"{self.shown}: other changes took more than {BUSY_SECONDS} s")
        try:
            yield
        finally:
            self._turns.release()

    def migrate(self) -> None:
        """Bring the schema up to date; of several processes one does it and the others wait."""
        config = migration_config()
        with self.migration() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """A transaction, as of a session, in which the schema may be changed."""
        with self._reached(), self.engine.connect().execution_options(migration=True) as connection:
            guard = _without_foreign_keys(connection) if self.is_sqlite else nullcontext()
            with guard, connection.begin():
                yield connection

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
            said = " ".join(str(getattr(error, "orig", None) or error).split())
            raise DatabaseUnreachable(f"{self.shown}: {said}") from error


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew, and dropping the old one would take along all that refers to it."""
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def migration_config() -> Config:
    """Alembic's configuration for the migrations inside this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config

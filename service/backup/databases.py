"""Copies of SQLite and Postgres databases while they are in use, and databases made of such copies."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psycopg
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import inspect, update
from sqlalchemy.engine import URL

from service.backup.manifest import BackupError, DatabaseCopy, DatabaseName
from service.db.database import Database, DatabaseUnreachable, migration_config
from service.db.engines import masked_url, parse_database_url
from service.db.tables import BackboneVersion, now

PROGRAMS: Final = Path("/usr/lib/postgresql")
"""Where Debian keeps each version's programs."""
MIGRATIONS: Final[dict[DatabaseName, Callable[[], ScriptDirectory]]] = {
    "rcmae": lambda: ScriptDirectory.from_config(migration_config()),
    "studies": lambda: ScriptDirectory(str(_package("optuna") / "storages/_rdb/alembic")),
    "mlflow": lambda: ScriptDirectory(str(_package("mlflow") / "store/db_migrations")),
}
"""The schemas that the installed packages know."""


def _package(name: str) -> Path:
    """The folder of a package, without the seconds that importing it takes."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise BackupError(f"{name} is not installed: pip install 'rcmae[server]'")
    return Path(found.origin).parent


def copy_database(name: DatabaseName, url: str, folder: Path) -> DatabaseCopy | None:
    """Write a consistent copy of a database to a folder; None if it has not been made yet. Raises `BackupError`."""
    parsed = parse_database_url(url)
    taken_at = datetime.now(UTC)
    if parsed.get_backend_name() != "sqlite":
        file = f"{name}.dump"
        revision = _dump(parsed, folder / file)
        return DatabaseCopy(name=name, engine="postgres", file=file, revision=revision, taken_at=taken_at)
    source = Path(str(parsed.database))
    if not source.is_file():
        return None
    file = f"{name}.db"
    revision = _copy_sqlite(source, folder / file)
    return DatabaseCopy(name=name, engine="sqlite", file=file, revision=revision, taken_at=taken_at)


def _copy_sqlite(source: Path, target: Path) -> str | None:
    """Copy a file that others may write to meanwhile; returns the revision of its schema."""
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=rw", uri=True, timeout=60)) as original,
            closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, whatever the original has beside it
            damage = copy.execute("PRAGMA integrity_check").fetchone()[0]
            if damage != "ok":
                raise BackupError(f"{source} is damaged: {damage}")
            return _revision(lambda query: copy.execute(query).fetchone(), "sqlite_master", "name")
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be copied to {target}: {error}") from error


def require_known(copy: DatabaseCopy) -> None:
    """Raises `BackupError` for a schema that is newer than the installed packages."""
    if copy.revision is None:
        return
    try:
        MIGRATIONS[copy.name]().get_revision(copy.revision)
    except CommandError as error:
        raise BackupError(
            f"the backup's database {copy.name} has the schema {copy.revision}, which this release does not know: "
            "restore it with the release that made it, or a later one"
        ) from error


def restore_postgres(dump: Path, url: str, *, replace: bool) -> None:
    """Fill a Postgres database; raises `BackupError`, as for one that holds tables unless ``replace``."""
    parsed = parse_database_url(url)
    with _connect(parsed) as connection:
        program = _client("pg_restore", connection.info.server_version)  # before anything is removed
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        if tables and tables[0]:
            if not replace:
                raise BackupError(
                    f"{masked_url(parsed)} holds {tables[0]} tables: stop what uses it and add --replace to remove "
                    "them, or name an empty database"
                )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    # Only the owner of an extension may comment on it, which is a superuser if one had to make it.
    options = ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", "--no-comments"]
    _run(program, parsed, [*options, str(dump)])


def spare_versions(url: str) -> None:
    """Let the days of all versions without a use begin anew in a restored database, and withdraw what was announced.

    What somebody named or used after the backup was made is not in it, so a retention rule must not delete for want of
    that. A backup from before there were rules needs nothing. Raises `BackupError`.
    """
    database = Database(url)
    try:
        with database.migration() as connection:
            known = inspect(connection)
            table = BackboneVersion.__tablename__
            if known.has_table(table) and "counted_since" in {column["name"] for column in known.get_columns(table)}:
                anew = {"counted_since": now(), "expires_at": None, "unneeded_since": None}
                connection.execute(update(BackboneVersion).values(anew))
    except DatabaseUnreachable as error:
        raise BackupError(str(error)) from error
    finally:
        database.close()


def is_empty(url: str) -> bool:
    """Whether a Postgres database holds no tables; raises `BackupError` if it cannot be reached."""
    with _connect(parse_database_url(url)) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    return not (found and found[0])


def _dump(url: URL, target: Path) -> str | None:
    with _connect(url) as connection:
        program = _client("pg_dump", connection.info.server_version)
    _run(program, url, ["--format=custom", "--no-owner", "--no-privileges", f"--file={target}"])
    with _connect(url) as connection:
        return _revision(lambda query: connection.execute(query.encode()).fetchone(), "pg_tables", "tablename")


def _revision(first: Callable[[str], tuple[object, ...] | None], tables: str, name: str) -> str | None:
    """Alembic's mark in a database."""
    if first(f"SELECT 1 FROM {tables} WHERE {name} = 'alembic_version'") is None:  # noqa: S608 - fixed names
        return None
    row = first("SELECT version_num FROM alembic_version")
    return str(row[0]) if row else None


def _conninfo(url: URL) -> str:
    """The database as libpq's programs take it, without its password, which a command line would show to everybody."""
    bare = url.set(drivername="postgresql", password="")  # None would leave it
    return bare.render_as_string(hide_password=False).replace(":@", "@", 1)


@contextmanager
def _connect(url: URL) -> Iterator[psycopg.Connection]:
    """Raises `BackupError` for whatever the server refuses."""
    try:
        with psycopg.connect(_conninfo(url), password=url.password, connect_timeout=10, autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        raise BackupError(f"{masked_url(url)}: {' '.join(str(error).split())}") from error


def _run(program: str, url: URL, arguments: list[str]) -> None:
    command = [program, *arguments, f"--dbname={_conninfo(url)}"]
    password = {"PGPASSWORD": url.password} if url.password else {}
    done = subprocess.run(command, env=os.environ | password, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackupError(f"{Path(program).name} of {masked_url(url)} failed: {done.stderr.strip()[-1500:]}")


def _client(program: str, server_version: int) -> str:
    """The path of a program of the server's version, or else of the next later one; raises `BackupError`."""
    server = server_version // 10000
    on_path = shutil.which(program)
    candidates = {*PROGRAMS.glob(f"*/bin/{program}"), *([Path(on_path)] if on_path else [])}
    versions = {_version(path): str(path) for path in sorted(candidates)}
    fitting = [version for version in versions if version >= server]
    if not fitting:
        found = f"only {program} {max(versions)} is installed" if versions else f"{program} is not installed"
        raise BackupError(f"the server is PostgreSQL {server}, and {found}: install postgresql-client-{server}")
    return versions[min(fitting)]


def _version(program: Path) -> int:
    text = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\) (\d+)", text)
    return int(found[1]) if found else 0

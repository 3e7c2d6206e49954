"""A state folder that lies elsewhere than when its runs were recorded: the databases name artifacts by absolute path.

`rcmae up` calls this before any part starts. MLflow's database is changed last, and it says where the artifacts were:
if this is interrupted, the next `up` does all of it again, which changes nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection, String, column, create_engine, func, inspect, literal, or_, select, table, update
from sqlalchemy.pool import NullPool

from service.db.engines import parse_database_url
from service.embedded.folder import Folder, StackError

LOCATIONS: Final = frozenset({"artifact_uri", "artifact_location", "folder", "source", "storage_location"})
"""Names of the columns, in MLflow's database and in ours, that hold the location of artifacts."""
TAGS: Final = frozenset({("trace_tags", "value"), ("trial_user_attributes", "value_json")})
"""Tables and columns that hold anything, such a location among it."""


class Moved(NamedTuple):
    """What was done."""

    before: str
    """Where the artifacts were."""
    now: str
    rows: int
    """How many records have been changed."""


def relocate(folder: Folder) -> Moved | None:
    """Make all records name the artifacts in a state folder that was moved or copied; None if they already do.

    Call it with the lock held and no part running. Raises `StackError` for a copy without the artifacts.
    """
    before, now = _recorded_root(folder), folder.artifact_root
    if before is None or before == now or "://" in now:
        return None
    old, new = Path(before), Path(now)
    if old.exists() and new.exists() and old.samefile(new):
        return None  # another path to it
    if not _has_files(new) and ("://" in before or _has_files(old)):  # in S3, from which a backup's copies may come
        raise StackError(
            f"the runs in {folder.path} have their artifacts in {before}, and {new} is empty: copy {before} to {new} "
            "as well, or move the whole state folder back"
        )
    databases = [folder.study_url, folder.database_url, folder.mlflow_url]
    return Moved(before, now, sum(_rewrite(url, before, now) for url in databases if _exists(url)))


def _has_files(root: Path) -> bool:
    return root.is_dir() and any(root.iterdir())


def _exists(url: str) -> bool:
    """Whether a database has been made; opening a SQLite file would make it."""
    parsed = parse_database_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(str(parsed.database)).is_file()


@contextmanager
def _transaction(url: str) -> Iterator[Connection]:
    engine = create_engine(parse_database_url(url), poolclass=NullPool, hide_parameters=True)
    with engine.begin() as connection:
        yield connection


def _recorded_root(folder: Folder) -> str | None:
    """Where MLflow put the artifacts; None if it has no experiment yet. An experiment's folder has its id as name."""
    if not folder.has_runs:
        return None
    experiments = table("experiments", column("experiment_id"), column("artifact_location"))
    with _transaction(folder.mlflow_url) as connection:
        if not inspect(connection).has_table("experiments"):
            return None
        for number, location in connection.execute(select(experiments).order_by("experiment_id")):
            root, _, name = str(location).rpartition("/")
            if name == str(number):
                return root
    return None


def _rewrite(url: str, before: str, now: str) -> int:
    """Change every record below the former root, in one transaction; returns how many there were."""
    with _transaction(url) as connection:
        return sum(
            _replace(connection, name, found, before, now, in_json=found == "value_json")
            for name, found in _columns(connection)
        )


def _columns(connection: Connection) -> Iterator[tuple[str, str]]:
    """The tables and their columns that may hold a location."""
    inspector = inspect(connection)
    for name in inspector.get_table_names():
        for found in inspector.get_columns(name):
            is_location = found["name"] in LOCATIONS or (name, found["name"]) in TAGS
            if is_location and isinstance(found["type"], String):
                yield name, found["name"]


def _replace(connection: Connection, name: str, within: str, before: str, now: str, *, in_json: bool) -> int:
    """Replace the beginning of a column's values, if that is the former root or a folder in it."""
    if in_json:  # a string
        before, now = json.dumps(before)[:-1], json.dumps(now)[:-1]
    value = column(within, String)
    rows = or_(value == before, func.substr(value, 1, len(before) + 1) == f"{before}/")
    moved = literal(now).concat(func.substr(value, len(before) + 1))
    return connection.execute(update(table(name, value)).where(rows).values({within: moved})).rowcount

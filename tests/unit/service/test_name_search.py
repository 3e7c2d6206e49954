"""Searches by a part of a job's name, on Postgres: by an index where the role may have one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from postgres_server import PASSWORD, PostgresServer
from service_fakes import add_job
from sqlalchemy import create_engine, make_url, text
from structlog.testing import capture_logs

from service.db import name_index
from service.db.database import Database
from service.db.name_index import NAME_INDEX
from service.db.tables import Job
from service.embedded import doctor
from service.jobs.listing import Filters, jobs_page, jobs_query

JOBS = 20_000


@pytest.fixture
def new_url(postgres: PostgresServer) -> str:
    """An empty database's."""
    return postgres.url("names")


@pytest.fixture
def database(new_url: str) -> Iterator[Database]:
    database = Database(new_url)
    database.migrate()
    yield database
    database.close()


def fill(database: Database) -> None:
    add_job(database, name="Walk of a Needle-17")
    own = {"id": "id || '-' || number", "name": "'walk-' || number", "idempotency_key": "NULL"}
    columns = [column.name for column in Job.__table__.columns]
    with database.session() as session:
        session.execute(
            text(
                f"INSERT INTO job ({', '.join(columns)}) SELECT {', '.join(own.get(name, name) for name in columns)} "
                f"FROM job, generate_series(1, {JOBS}) AS number"
            )
        )
        session.execute(text("ANALYZE job"))


def plan_of(database: Database, name_contains: str) -> str:
    query = jobs_query(Filters(name_contains=name_contains), 50, None)
    statement = query.compile(database.engine, compile_kwargs={"literal_binds": True})
    with database.engine.connect() as connection:
        return "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}".replace("%", "%%")).scalars())


def found(database: Database, name_contains: str) -> list[str]:
    with database.read() as session:
        return [job["name"] for job in jobs_page(session, Filters(name_contains=name_contains), 50, None)[0]]


def test_a_part_of_a_name_is_found_by_its_trigrams(database):
    fill(database)
    for part in ("needle-17", "NEEDLE", "f a n"):
        assert NAME_INDEX in plan_of(database, part)
        assert found(database, part) == ["Walk of a Needle-17"]
    assert found(database, "lk-19999") == ["walk-19999"]
    assert found(database, "%") == []
    assert len(found(database, "wa")) == 50, "two characters are no trigram"


def test_a_role_without_the_right_to_the_extension_searches_without_it(new_url, monkeypatch):
    monkeypatch.setattr(name_index, "log", structlog.get_logger())  # a cached logger cannot be captured
    owner = create_engine(new_url, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        connection.execute(text(f"CREATE ROLE unindexed LOGIN PASSWORD '{PASSWORD}'"))
        connection.execute(text("GRANT USAGE, CREATE ON SCHEMA public TO unindexed"))
    url = make_url(new_url).set(username="unindexed").render_as_string(hide_password=False)
    limited = Database(url)
    try:
        with capture_logs() as lines:
            limited.migrate()
        (line,) = (line for line in lines if line["event"] == "names_not_indexed")
        assert 'permission denied to create extension "pg_trgm"' in line["detail"]
        assert "CREATE EXTENSION pg_trgm" in line["remedy"]
        check = doctor._name_index(url)
        assert (check.level, check.found, check.remedy) == ("warning", "reads every job", line["remedy"])
        add_job(limited, name="Needle")
        assert found(limited, "needle") == ["Needle"]
        with owner.connect() as connection:
            connection.execute(text("CREATE EXTENSION pg_trgm"))
        with capture_logs() as lines:
            limited.migrate()
        assert lines == []
        assert doctor._name_index(url).level == "fine"
    finally:
        limited.close()
        with owner.connect() as connection:
            connection.execute(text("DROP OWNED BY unindexed"))
            connection.execute(text("DROP ROLE unindexed"))
        owner.dispose()

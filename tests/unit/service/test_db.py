"""The database: migrations, times, keys, several writers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from service_fakes import add_job, attempts_of, events_of, job_of
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from service.app import create_app
from service.auth import Caller, Role, caller_of, ensure_admin, ensure_token
from service.db import Attempt, Database, Event, Job, migration_config
from service.errors import ApiProblem
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.service import submit
from service.settings import Settings
from trainer.spec.pretrain import PretrainSpec

TABLES = {"job", "attempt", "event", "token"}


def alembic(database: Database, what: str, *arguments: str) -> None:
    config = migration_config()
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        getattr(command, what)(config, *arguments)


def test_migrations_go_up_are_whole_and_go_down(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/new.db")
    database.migrate()
    assert set(inspect(database.engine).get_table_names()) >= TABLES
    alembic(database, "check")  # raises where the models differ from the migrations
    database.migrate()
    alembic(database, "downgrade", "base")
    assert not TABLES & set(inspect(database.engine).get_table_names())
    database.migrate()
    add_job(database)
    database.close()


def test_times_come_back_in_utc(database):
    zone = timezone(timedelta(hours=5, minutes=30))
    moment = datetime(2025, 6, 1, 12, 30, 15, 123456, tzinfo=zone)
    job_id = add_job(database, created_at=moment)
    job = job_of(database, job_id)
    assert job.created_at == moment
    assert job.created_at.utcoffset() == timedelta(0)
    assert job.started_at is None
    with database.read() as session:
        stored = session.execute(text("SELECT created_at FROM job")).scalar_one()
        assert str(stored) == "2025-06-01 07:00:15.123456"


def test_what_belongs_to_a_job_needs_it_and_goes_with_it(database):
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(Event(job_id="job-none", state="queued", actor="eve"))
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(Attempt(job_id="job-none", number=1, submission_id="x", state="submitted"))
    job_id = add_job(database)
    with database.session() as session:
        session.add(Event(job_id=job_id, state="queued", actor="eve"))
        session.add(Attempt(job_id=job_id, number=1, submission_id="x", state="submitted"))
    with database.session() as session:
        session.execute(text("DELETE FROM job"))
    assert events_of(database, job_id) == []
    assert attempts_of(database, job_id) == []


def test_an_owner_uses_a_key_once(database):
    add_job(database, idempotency_key="k")
    add_job(database, idempotency_key="k", owner="bob")
    add_job(database)
    add_job(database)
    with pytest.raises(IntegrityError):
        add_job(database, idempotency_key="k")


def test_an_exception_takes_everything_back(database):
    job_id = add_job(database)

    def fail_afterwards() -> None:
        with database.session() as session:
            repository.get(session, job_id).name = "changed"
            session.add(Event(job_id=job_id, state="queued", actor="eve"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_afterwards()
    assert job_of(database, job_id).name == "digits"
    assert events_of(database, job_id) == []


def test_writers_wait_for_each_other(database):
    """Each transaction reads first and writes then: such ones fail at once where SQLite's defaults are left."""
    job_id = add_job(database)
    start = threading.Barrier(2)

    def count(_: int) -> None:
        start.wait()
        for _ in range(40):
            with database.session() as session:
                job = repository.get(session, job_id)
                job.failures = job.failures + 1
                note(session, job, None, f"{job.failures}", "counter")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(count, range(2)))
    assert job_of(database, job_id).failures == 80
    assert [event.message for event in events_of(database, job_id)] == [str(n) for n in range(1, 81)]


def test_a_reader_does_not_wait_for_a_writer(database):
    job_id = add_job(database)
    with database.session() as writer:
        repository.get(writer, job_id).name = "new"
        writer.flush()
        assert job_of(database, job_id).name == "digits"
    assert job_of(database, job_id).name == "new"


def test_the_same_key_at_the_same_time_makes_one_job(settings: Settings, database):
    parts = create_app(settings).state.parts
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/data"}})
    start = threading.Barrier(4)

    def post(_: int) -> tuple[str, bool]:
        start.wait()
        job, new = submit(parts, Caller("alice", Role.SUBMITTER), spec, "key")
        return job.id, new

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(post, range(4)))
    assert len({job_id for job_id, _ in made}) == 1
    assert [new for _, new in made].count(True) == 1
    parts.database.close()
    with database.read() as session:
        assert repository.count(session) == 1


def test_ids_sort_by_time():
    ids = [repository.new_id() for _ in range(200)]
    assert len(set(ids)) == 200
    stamps = [job_id[:12] for job_id in ids]
    assert stamps == sorted(stamps)


def test_tokens_are_stored_as_hashes(database, tmp_path):
    ensure_token(database, "a-token-long-enough", "dora", Role.OPERATOR)
    assert caller_of(database, "Bearer a-token-long-enough") == Caller("dora", Role.OPERATOR)
    assert caller_of(database, "bearer  a-token-long-enough ") == Caller("dora", Role.OPERATOR)
    ensure_token(database, "a-token-long-enough", "dora", Role.VIEWER)
    assert caller_of(database, "Bearer a-token-long-enough") == Caller("dora", Role.VIEWER)
    with database.read() as session:
        stored = str(session.execute(text("SELECT * FROM token")).all())
    assert "a-token-long-enough" not in stored
    with pytest.raises(ApiProblem, match="not known"):
        caller_of(database, "Bearer a-token-long-enougH")
    with pytest.raises(ValueError, match="at least 16"):
        ensure_token(database, "short", "dora", Role.ADMIN)
    file = tmp_path / "token"
    file.write_text("admins-own-token-1234\n")
    ensure_admin(database, file)
    assert caller_of(database, "Bearer admins-own-token-1234") == Caller("admin", Role.ADMIN)


def test_a_job_keeps_what_it_was_given(database):
    job_id = add_job(database, labels={"a": "ü"}, progress={"step": 1}, result=None, message="→")
    with database.read() as session:
        job = session.get(Job, job_id)
        assert (job.labels, job.progress, job.result, job.message) == ({"a": "ü"}, {"step": 1}, None, "→")
        assert (job.attempts, job.since_attempt, job.failures, job.restarts) == (0, 1, 0, 0)
        assert datetime.now(UTC) - job.created_at < timedelta(minutes=5)

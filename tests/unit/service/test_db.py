"""The database: migrations, times, keys, several writers."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi.testclient import TestClient
from postgres_server import PASSWORD, PostgresServer
from search_files import SEARCH
from service_fakes import add_job, attempts_of, events_of, job_of, problem
from sqlalchemy import MetaData, func, inspect, null, select, text
from sqlalchemy.exc import IntegrityError, InternalError
from sqlalchemy.orm import Session

from service.app import create_app
from service.auth.caller import Caller, caller_of, ensure_admin, ensure_token, sha256
from service.auth.scopes import Role
from service.db.database import Database, DatabaseUnreachable, migration_config
from service.db.engines import DatabaseUrlError
from service.db.tables import Addition, AliasMove, Attempt, BackboneVersion, Event, Job, now
from service.http.problems import ApiProblem
from service.jobs import aliases, repository, versions, visibility
from service.jobs.lifecycle import note
from service.jobs.service import submit
from service.settings import Settings
from trainer.spec.pretrain import PretrainSpec

pytestmark = pytest.mark.both_databases

TABLES = {
    *("job", "attempt", "event", "token", "lease", "audit", "work_item"),
    *("backbone", "backbone_version", "backbone_alias", "registry_check", "webhook", "webhook_delivery"),
    *("signing_key", "version_signature", "version_use", "retention_rule", "alias_move", "backbone_reader"),
    *("evaluation", "evaluation_score"),
}


def count_jobs(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Job))


def alembic(database: Database, what: str, *arguments: str) -> None:
    config = migration_config()
    with database.migration() as connection:
        config.attributes["connection"] = connection
        getattr(command, what)(config, *arguments)


# --- migrations -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database's."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    return request.getfixturevalue("postgres").url("new")


@pytest.fixture
def new(new_url: str) -> Iterator[Database]:
    """An empty database."""
    database = Database(new_url)
    yield database
    database.close()


def test_migrations_go_up_are_whole_and_go_down(new):
    new.migrate()
    assert set(inspect(new.engine).get_table_names()) >= TABLES
    alembic(new, "check")  # raises where the models differ from the migrations
    new.migrate()
    alembic(new, "downgrade", "base")
    assert not TABLES & set(inspect(new.engine).get_table_names())
    new.migrate()
    add_job(new)


def fill_first_version(database: Database) -> None:
    """Two jobs as the first version kept them, one that was admitted and has an attempt, and one that waits."""
    moment = datetime(2025, 6, 1, 12, tzinfo=UTC).replace(tzinfo=None)
    with database.migration() as connection:
        tables = MetaData()
        tables.reflect(connection)
        for job_id, resolved in (("job-admitted", True), ("job-waits", False)):
            values = dict.fromkeys(("priority", "attempts", "since_attempt", "failures", "restarts"), 0)
            values |= dict.fromkeys(("kind", "name", "state", "message", "owner", "dataset_uri", "body_sha256"), "x")
            values |= {"id": job_id, "labels": {}, "spec": {"of": job_id}, "resolved": resolved, "created_at": moment}
            connection.execute(tables.tables["job"].insert(), values)
            event = {"job_id": job_id, "time": moment, "state": "queued", "message": "Submitted.", "actor": "alice"}
            connection.execute(tables.tables["event"].insert(), event)
        attempt = {"job_id": "job-admitted", "number": 1, "submission_id": "job-admitted-a1", "state": "running"}
        attempt |= {"message": "", "accepted": True, "generation": 0, "started_at": moment}
        connection.execute(tables.tables["attempt"].insert(), attempt)


def rows(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.read() as session:
        return [tuple(row) for row in session.execute(text(statement))]


def test_an_upgrade_keeps_what_the_first_version_stored(new):
    alembic(new, "upgrade", "0001")
    fill_first_version(new)
    new.migrate()
    admitted, waits = job_of(new, "job-admitted"), job_of(new, "job-waits")
    assert admitted.resolved_spec == admitted.spec == admitted.run_spec == {"of": "job-admitted"}
    assert (waits.spec, waits.resolved_spec) == ({"of": "job-waits"}, None)
    assert waits.waiting_since == waits.created_at == datetime(2025, 6, 1, 12, tzinfo=UTC)
    assert (waits.notes, waits.deleted_at) == ("", None)
    assert [(a.number, a.accepted, a.heartbeat) for a in attempts_of(new, "job-admitted")] == [(1, True, None)]
    assert [event.message for event in events_of(new, "job-waits")] == ["Submitted."]
    with pytest.raises(IntegrityError), new.session() as session:  # rows still need what they refer to
        session.add(Event(job_id="job-none", state="queued", actor="eve"))


def test_an_upgrade_knows_which_backbone_deliveries_to_webhooks_are_about(new):
    """They are sent, or sent again, to those alone who see it."""
    alembic(new, "upgrade", "0015")
    tables, moment = MetaData(), datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    with new.migration() as connection:
        tables.reflect(connection, only=["webhook", "webhook_delivery"])
        values = {"id": "hook-1", "owner": "alice", "url": "https://x", "description": "", "enabled": True}
        values |= {"disabled_because": "", "secret": "x", "created_at": moment, "last_message": ""}
        connection.execute(tables.tables["webhook"].insert(), values)
        for number, kind in enumerate(("version.registered", "alias.moved", "webhook.test")):
            row = {"id": f"msg-{number}", "webhook_id": "hook-1", "type": kind, "data": {"name": f"b{number}"}}
            row |= {"created_at": moment, "attempts": 0, "response": "", "message": ""}
            connection.execute(tables.tables["webhook_delivery"].insert(), row)
    new.migrate()
    found = rows(new, "SELECT id, backbone FROM webhook_delivery ORDER BY id")
    assert found == [("msg-0", "b0"), ("msg-1", "b1"), ("msg-2", None)]
    alembic(new, "downgrade", "0015")
    assert not inspect(new.engine).has_table("backbone_reader")


def test_an_addition_that_was_never_completed_is_forgotten_by_an_upgrade(new):
    """Its key is free again; its trials are found in the study if it is repeated."""
    alembic(new, "upgrade", "0007")
    tables, moment = MetaData(), datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    with new.migration() as connection:
        tables.reflect(connection, only=["job", "addition"])
        values = dict.fromkeys(("priority", "attempts", "since_attempt", "failures", "restarts"), 0)
        values |= dict.fromkeys(("kind", "name", "state", "message", "notes", "owner", "dataset_uri"), "x")
        values |= {"id": "job-1", "labels": {}, "spec": {}, "body_sha256": "x", "created_at": moment}
        connection.execute(tables.tables["job"].insert(), values | {"waiting_since": moment})
        for key, numbers in (("complete", [3, 4]), ("broken off", null())):
            addition = {"search_id": "job-1", "owner": "alice", "idempotency_key": key, "body_sha256": "x"}
            addition |= {"begun_at": moment, "numbers": numbers}
            connection.execute(tables.tables["addition"].insert().values(**addition))
    new.migrate()
    with new.read() as session:
        assert [(row.idempotency_key, row.numbers) for row in session.scalars(select(Addition))] == [
            ("complete", [3, 4])
        ]
    alembic(new, "downgrade", "0007")
    (row,) = rows(new, "SELECT idempotency_key, begun_at FROM addition")
    assert row[0] == "complete"
    assert row[1] is not None


def test_a_downgrade_keeps_what_the_older_version_knows(new):
    new.migrate()
    admitted = add_job(new, resolved_spec={"workers": 2}, notes="seen by nobody afterwards")
    waits = add_job(new, resolved_spec=None)
    with new.session() as session:
        session.add(Event(job_id=admitted, state="queued", message="Submitted.", actor="alice"))
        session.add(Attempt(job_id=admitted, number=1, submission_id="x", state="running", heartbeat=3.5))
    alembic(new, "downgrade", "0001")
    found = dict(rows(new, "SELECT id, resolved FROM job"))
    assert {job_id: bool(resolved) for job_id, resolved in found.items()} == {admitted: True, waits: False}
    specs = {
        job_id: spec if isinstance(spec, dict) else json.loads(spec)
        for job_id, spec in rows(new, "SELECT id, spec FROM job")
    }
    assert specs[admitted] == {"workers": 2}
    assert specs[waits]["kind"] == "pretrain"
    assert rows(new, "SELECT job_id, number, state FROM attempt") == [(admitted, 1, "running")]
    assert rows(new, "SELECT job_id, message FROM event") == [(admitted, "Submitted.")]
    new.migrate()
    assert job_of(new, admitted).resolved_spec == {"workers": 2}
    assert len(attempts_of(new, admitted)) == 1


def test_an_idempotency_key_is_hashed_once_however_often_the_schema_moves(new):
    """Of an older service it is as it was sent; what an upgrade made of it, the next one leaves alone."""
    new.migrate()
    job_id = add_job(new)
    alembic(new, "downgrade", "0002")
    with new.migration() as connection:
        connection.execute(text("UPDATE job SET idempotency_key = 'monday'"))
    for _ in range(2):
        new.migrate()
        assert job_of(new, job_id).idempotency_key == f"sha256:{sha256('monday')}"
        alembic(new, "downgrade", "0002")


def test_an_upgrade_takes_deleted_versions_over_and_has_the_others_read_before_lists_are_answered(new):
    alembic(new, "upgrade", "0001")
    fill_first_version(new)
    alembic(new, "upgrade", "0007")
    job_id = "job-admitted"
    moment = datetime(2025, 6, 1, 12, tzinfo=UTC)
    with new.migration() as connection:
        for number, job in ((1, job_id), (2, "job-removed")):  # what the second job left was removed with it
            values = {"name": "digits", "version": number, "job_id": job, "source": f"models:/m-{number}"}
            values |= {"folder": f"/artifacts/m-{number}", "deleted_at": moment.replace(tzinfo=None)}
            connection.execute(text(f"INSERT INTO deleted_version ({', '.join(values)}) "
                                    f"VALUES ({', '.join(f':{name}' for name in values)})"), values)  # fmt: skip
    new.migrate()
    with new.read() as session:
        (row,) = versions.deleting(session)
        assert (row.name, row.version, row.job_id, row.owner) == ("digits", 1, job_id, "x")
        assert (row.source, row.folder, row.tags, row.deleted_at) == ("models:/m-1", "/artifacts/m-1", {}, moment)
        assert (row.trained_by, row.dataset_uri) == (job_id, "x")
        with pytest.raises(ApiProblem, match="is reading the registered versions"):
            versions.must_be_read(session)
    alembic(new, "downgrade", "0007")
    found = rows(new, "SELECT name, version, job_id, source, folder FROM deleted_version")
    assert found == [("digits", 1, job_id, "models:/m-1", "/artifacts/m-1")]


def test_an_upgrade_gives_each_backbone_the_owner_of_its_oldest_version(new):
    """What was written of a job for those who see it is not shown to all by the upgrade."""
    alembic(new, "upgrade", "0001")
    fill_first_version(new)
    alembic(new, "upgrade", "0012")
    moment = datetime(2025, 6, 1, 12, tzinfo=UTC).replace(tzinfo=None)
    with new.migration() as connection:
        tables = MetaData()
        tables.reflect(connection, only=["backbone_version"])
        for name, number, state, owner in (
            ("Cats", 1, "removed", "eve"), ("Cats", 2, "gone", "alice"), ("Cats", 3, "ready", "bob"),
            ("dogs", 1, "ready", "bob"), ("lost", 1, "deleting", "eve"),
        ):  # fmt: skip
            values = {"name": name, "version": number, "state": state, "owner": owner, "job_id": "job-admitted"}
            values |= {"trained_by": "x", "dataset_uri": "s3://B/Straße", "source": "x", "tags": {}}
            values |= {"created_at": moment + timedelta(days=number)}
            connection.execute(tables.tables["backbone_version"].insert(), values)
    new.migrate()
    with new.read() as session:
        found = versions.backbones(session)
        assert {name: (row.owner, row.description, row.labels, row.search_text) for name, row in found.items()} == {
            "Cats": ("alice", None, {}, ""),
            "dogs": ("bob", None, {}, ""),
        }
        assert found["Cats"].created_at == datetime(2025, 6, 3, 12, tzinfo=UTC)
        version = session.get_one(BackboneVersion, ("Cats", 3))
        assert (version.description, version.labels) == (None, {})
        caller, words = Caller("admin", Role.ADMIN), versions.with_words(["STRASSE", "cat"])
        assert visibility.shown_backbones(session, caller, "", "", 9, words) == ["Cats"]
    alembic(new, "downgrade", "0012")
    assert sorted(rows(new, "SELECT name, version FROM backbone_version"))[0] == ("Cats", 1)
    assert not inspect(new.engine).has_table("backbone")


def test_downloads_of_versions_from_before_an_upgrade_are_counted_from_then(new):
    """Otherwise a retention rule would take those that people use for versions that nobody does."""
    alembic(new, "upgrade", "0001")
    fill_first_version(new)
    alembic(new, "upgrade", "0016")
    moment = datetime(2025, 6, 1, 12, tzinfo=UTC).replace(tzinfo=None)
    with new.migration() as connection:
        tables = MetaData()
        tables.reflect(connection, only=["backbone_version"])
        values = {"name": "digits", "version": 1, "state": "ready", "owner": "alice", "job_id": "job-admitted"}
        values |= {"trained_by": "x", "dataset_uri": "x", "source": "x", "tags": {}, "created_at": moment}
        connection.execute(tables.tables["backbone_version"].insert(), values)
    before = now()
    new.migrate()
    with new.read() as session:
        version = session.get_one(BackboneVersion, ("digits", 1))
        assert before <= version.counted_since <= now()
    with new.migration() as connection:  # a process of the earlier release, which does not know the column
        connection.execute(tables.tables["backbone_version"].insert(), values | {"version": 2})
    with new.read() as session:
        assert session.get_one(BackboneVersion, ("digits", 2)).counted_since == version.counted_since
        assert (version.unnamed_at, version.expires_at) == (None, None)


def test_an_upgrade_rebuilds_the_history_of_aliases_from_the_audit_log(new):
    """Otherwise no champion of before could be restored under a rule."""
    alembic(new, "upgrade", "0001")
    fill_first_version(new)
    alembic(new, "upgrade", "0018")
    start = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)

    def at(day: int) -> datetime:
        return start + timedelta(days=day)

    with new.migration() as connection:
        tables = MetaData()
        tables.reflect(connection, only=["audit", "backbone", "backbone_version", "backbone_alias"])
        backbone = {"owner": "alice", "visibility": "all", "labels": {}, "search_text": "", "created_at": at(2)}
        for name in ("digits", "cats", "dogs"):
            connection.execute(tables.tables["backbone"].insert(), {"name": name} | backbone)
        for name, number, day in (("digits", 1, 2), ("digits", 2, 2), ("digits", 3, 6), ("cats", 1, 2), ("dogs", 1, 2)):
            values = {"name": name, "version": number, "state": "ready", "owner": "alice", "job_id": "job-admitted"}
            values |= {"trained_by": "x", "dataset_uri": "x", "source": f"m-{number}", "labels": {}, "search_text": ""}
            values |= {"tags": {"rcmae.metric.eval/x": "0.5", "rcmae.metric.eval/y": "nan"}, "downloads": 0}
            values |= {"created_at": at(day), "counted_since": at(day)}
            connection.execute(tables.tables["backbone_version"].insert(), values)
        for name, number in (("digits", 2), ("cats", 1)):
            alias = {"name": name, "alias": "champion", "version": number}
            connection.execute(tables.tables["backbone_alias"].insert(), alias)
        for day, action, status, target, detail in (
            (1, "backbone.alias", 200, "digits", {"alias": "champion", "version": 9, "before": None}),  # an earlier one
            (3, "backbone.alias", 200, "digits", {"alias": "champion", "version": 1, "before": None}),
            (3, "backbone.alias", 200, "digits", {"alias": "champion", "version": 1, "before": 1}),
            (4, "backbone.alias", 403, "digits", None),
            (4, "backbone.alias", 200, "digits", {"alias": "best", "version": 3, "before": None}),  # another third one
            (5, "backbone.unalias", 200, "digits", {"alias": "best", "version": 3}),
            (7, "backbone.alias", 200, "digits", {"alias": "champion", "version": 2, "before": 1, "reason": "better"}),
            (7, "backbone.alias", 200, "gone", {"alias": "champion", "version": 1, "before": None}),
            (7, "backbone.delete_version", 200, "digits", {"version": 7}),
        ):
            line = {"time": at(day), "actor": "bob", "token_id": "tok-1", "action": action, "target": target}
            connection.execute(tables.tables["audit"].insert(), line | {"status": status, "detail": detail})
    before = now()
    new.migrate()
    with new.read() as session:
        found = session.scalars(select(AliasMove).order_by(AliasMove.id)).all()
        assert [(m.name, m.alias, m.version, m.before, m.source, m.metrics, m.actor, m.reason) for m in found] == [
            ("digits", "champion", 1, None, "m-1", {"eval/x": 0.5}, "bob", ""),
            ("digits", "best", 3, None, None, None, "bob", ""),
            ("digits", "best", None, 3, None, None, "bob", ""),
            ("digits", "champion", 2, 1, "m-2", {"eval/x": 0.5}, "bob", "better"),
            ("cats", "champion", 1, None, "m-1", {"eval/x": 0.5}, None, ""),
        ]
        assert [m.moved_at.replace(tzinfo=None) for m in found[:4]] == [at(3), at(4), at(5), at(7)]
        assert before <= found[4].moved_at <= now()
        assert {m.token_id for m in found[:4]} == {"tok-1"}
        version = session.get_one(BackboneVersion, ("digits", 1))
        assert aliases.approvers(session, version, "champion") == {"bob"}
    alembic(new, "downgrade", "0018")


def test_a_new_service_has_no_versions_to_read(new):
    new.migrate()
    with new.read() as session:
        versions.must_be_read(session)


def test_an_upgrade_leaves_searches_that_a_request_ended_to_a_worker(new):
    """The loop found them by reading every search that had ended."""
    new.migrate()
    running, none = ({"trials": {"running": count}} for count in (2, 0))
    wanted = [
        add_job(new, "succeeded", SEARCH, result=None, progress=None),
        add_job(new, "cancelled", SEARCH, result=None, progress=running),
    ]
    add_job(new, "succeeded", SEARCH, result={}, progress=none)
    add_job(new, "failed", SEARCH, progress=None)
    add_job(new, "paused", SEARCH, progress=running)
    add_job(new, "succeeded", SEARCH, result=None, deleted_at=datetime(2025, 6, 1, tzinfo=UTC))
    add_job(new, "succeeded", result=None)
    alembic(new, "downgrade", "0007")
    new.migrate()
    found = rows(new, "SELECT kind, target, failures FROM work_item")
    assert sorted(found) == sorted(("settle", job_id, 0) for job_id in wanted)


def test_several_processes_migrate_at_once(new, new_url):
    program = "import sys; from service.db.database import Database; Database(sys.argv[1]).migrate()"
    command_line = [sys.executable, "-c", program, new_url]
    processes = [subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    alembic(new, "check")
    add_job(new)


# --- what is stored ---------------------------------------------------------------------------------------------------


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


def test_threads_take_turns_to_write(tmp_path, monkeypatch):
    """One that has just written stands behind those that wait; and nobody waits for ever."""
    database = Database(f"sqlite:///{tmp_path / 'rcmae.db'}")
    database.migrate()
    wrote: list[str] = []
    done = threading.Event()

    def write(who: str, times: int) -> None:
        for _ in range(times):
            with database.session() as session:
                count_jobs(session)
                wrote.append(who)
                done.wait(0.02)  # the others wait by then

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab", (10, 10)))
    assert max(len(list(turn)) for _, turn in itertools.groupby(wrote)) < 10, wrote
    monkeypatch.setattr("service.db.database.BUSY_SECONDS", 0.05)
    with database.session(), pytest.raises(DatabaseUnreachable, match="other changes took more than"):
        add_job(database)
    add_job(database)
    database.close()


def test_a_reader_does_not_wait_for_a_writer(database):
    job_id = add_job(database)
    with database.session() as writer:
        repository.get(writer, job_id).name = "new"
        writer.flush()
        assert job_of(database, job_id).name == "digits"
    assert job_of(database, job_id).name == "new"


def test_the_same_key_at_the_same_time_makes_one_job(settings: Settings, database):
    app_state = create_app(settings).state.app_state
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/data"}})
    start = threading.Barrier(4)

    def post(_: int) -> tuple[str, bool]:
        start.wait()
        job, new = submit(app_state, Caller("alice", Role.SUBMITTER), spec, "key")
        return job.id, new

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(post, range(4)))
    assert len({job_id for job_id, _ in made}) == 1
    assert [new for _, new in made].count(True) == 1
    app_state.database.close()
    with database.read() as session:
        assert count_jobs(session) == 1


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
    with pytest.raises(ApiProblem, match="does not know"):
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


def test_what_a_database_cannot_hold_is_the_requests_fault(api):
    for path in ("/v1/jobs?name_contains=%00", "/v1/jobs/%00", "/v1/jobs?label=a%00:b"):
        assert api.get(path).status_code in {200, 404, 422}, path


# --- Postgres ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server_url(postgres: PostgresServer, shared_url: str) -> Iterator[str]:
    """A database in a server that a test may end."""
    yield shared_url
    postgres.start()


def test_a_server_that_restarts_costs_the_transactions_it_cut(postgres: PostgresServer, server_url):
    database = Database(server_url)
    for _ in range(5):  # several connections in the pool
        with database.read() as outer, database.read() as inner:
            assert count_jobs(outer) == count_jobs(inner)

    def write_meanwhile() -> None:
        with database.session() as session:
            count_jobs(session)
            postgres.restart()
            session.add(Event(job_id="job-none", state="queued", actor="eve"))

    with pytest.raises(DatabaseUnreachable):
        write_meanwhile()
    add_job(database)
    postgres.kill()
    with pytest.raises(DatabaseUnreachable, match="refused") as away:
        add_job(database)
    assert PASSWORD not in str(away.value)
    with pytest.raises(DatabaseUnreachable, match="refused"):
        database.migrate()
    postgres.start()
    add_job(database)
    database.close()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.usefixtures("server_url")
def test_requests_are_told_that_the_database_is_away(postgres: PostgresServer, settings: Settings):
    with TestClient(create_app(settings)) as client:
        client.headers["Authorization"] = "Bearer unknown-0123456789"
        assert client.get("/v1/jobs").status_code == 401
        postgres.kill()
        detail = problem(client.get("/v1/jobs"), 503, "unavailable")["detail"]
        assert "the database cannot be reached now" in detail
        assert PASSWORD not in detail
        assert client.get("/healthz").status_code == 200
        postgres.start()
        assert client.get("/v1/jobs").status_code == 401


def test_a_writer_that_stopped_does_not_hold_up_the_others_for_long(server_url):
    stopped = Database(f"{server_url}?options=-c%20idle_in_transaction_session_timeout%3D300ms")
    database = Database(server_url)
    job_id = add_job(database)

    def stop_in_the_middle() -> None:
        with stopped.session() as session:
            repository.get(session, job_id).name = "never committed"
            session.flush()
            with database.session() as writer:  # waits for the first one, until the server ends that
                repository.get(writer, job_id).notes = "went on"

    with pytest.raises(DatabaseUnreachable):
        stop_in_the_middle()
    job = job_of(database, job_id)
    assert (job.name, job.notes) == ("digits", "went on")
    stopped.close()
    database.close()


def test_a_writer_that_waits_too_long_is_told(server_url):
    impatient = Database(f"{server_url}?options=-c%20lock_timeout%3D100ms")
    database = Database(server_url)
    with database.session() as session:
        count_jobs(session)
        with pytest.raises(DatabaseUnreachable, match="lock timeout"):
            add_job(impatient)
    add_job(impatient)
    impatient.close()
    database.close()


def test_a_reader_sees_one_state_and_changes_nothing(server_url):
    database = Database(server_url)
    job_id = add_job(database)
    with database.read() as reader:
        assert reader.execute(text("SELECT name FROM job WHERE id = :id"), {"id": job_id}).scalar_one() == "digits"
        with database.session() as writer:
            repository.get(writer, job_id).name = "new"
        assert reader.execute(text("SELECT name FROM job WHERE id = :id"), {"id": job_id}).scalar_one() == "digits"
        with pytest.raises(InternalError, match="read-only"):
            reader.execute(text("DELETE FROM job"))
        reader.rollback()
    database.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "not a database URL"),
        ("rcmae.db", "not a database URL"),
        ("mysql://rcmae:hidden@host/name", "begins with mysql://"),
        ("postgresql+asyncpg://rcmae:hidden@host/name", r"begins with postgresql\+asyncpg://"),
        ("postgresql://rcmae:hidden@host:port/name", "not a database URL"),
        ("postgresql://rcmae:hidden@host", "names no database"),
        ("sqlite://", "names no database"),
        ("sqlite:///:memory:", "names no database"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url, said):
    with pytest.raises(DatabaseUrlError, match=said) as refused:
        Database(url)
    assert "RCMAE_DATABASE_URL" in str(refused.value)
    assert "postgresql+psycopg://user:password@host:5432/name" in str(refused.value)
    assert "hidden" not in "".join(traceback.format_exception(refused.value))


def test_a_server_that_refuses_us_says_so_without_the_password(server_url):
    for wrong, said in (
        (server_url.replace(PASSWORD, "hidden"), "password authentication failed"),
        (f"{server_url}_none", "does not exist"),
        ("postgresql://rcmae:hidden@127.0.0.1:1/name?connect_timeout=2", "refused"),
    ):
        database = Database(wrong)
        with pytest.raises(DatabaseUnreachable, match=said) as refused:
            database.migrate()
        assert "hidden" not in str(refused.value)
        database.close()

"""What a round reads and writes: what indexes find, and what has changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from service_fakes import SPEC, add_job, attempts_of, events_of, job_of
from service_world import World
from sqlalchemy import event, insert, text
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.tables import Attempt, Job
from service.jobs import repository, work
from service.jobs.lifecycle import Verb
from service.jobs.work import Look, Work
from service.webhooks import repository as webhooks
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys

pytestmark = pytest.mark.both_databases

LONG_AGO = datetime(2025, 6, 1, tzinfo=UTC)
BY_STATE = {"ix_job_state_created_at_id", "ix_job_state_kind_deleted_at_waiting_since"}
BY_KIND = {"pk_work_item", "ix_work_item_kind_due_at"}
QUERIES: dict[str, tuple[Callable[[Session], Any], set[str]]] = {
    "what waits": (repository.waiting_revisions, BY_STATE),
    "what waits, whole": (repository.waiting, BY_STATE),
    "what runs": (repository.live, BY_STATE | {"pk_attempt"}),
    "what was deleted": (repository.deleted, {"ix_job_deleted"}),
    "what to sweep": (
        lambda session: repository.unswept(session, LONG_AGO, 100),
        BY_KIND | {"ix_attempt_unswept", "pk_job"},
    ),
    "which of Ray's records are ours": (
        lambda session: repository.ended_submissions(session, ["job-1-a1", "job-2-a1"]),
        {"ix_attempt_submission_id"},
    ),
    "what workers may begin": (
        lambda session: work.due(session, list(Work), 1, Look(datetime.now(UTC), timedelta(seconds=10), ["0" * 16])),
        BY_KIND,
    ),
    "which webhooks have something due": (
        lambda session: webhooks.due_webhooks(session, datetime.now(UTC), timedelta(hours=27)),
        {"ix_webhook_delivery_waits"},
    ),
}
"""Of the loop and its workers, with the indexes that each may use; SQLite names those of primary keys differently."""


def many_ended(database: Database, count: int = 400) -> None:
    """Jobs of which the loop has nothing to do any more."""
    with database.session() as session:
        common = {"kind": "pretrain", "name": "x", "state": "succeeded", "owner": "alice", "priority": 0}
        common |= {"labels": {}, "spec": SPEC, "dataset_uri": "x", "body_sha256": "x", "attempts": 1}
        session.execute(insert(Job), [common | {"id": f"job-{number}"} for number in range(count)])
        of_each = {"number": 1, "state": "succeeded", "ended_at": LONG_AGO, "swept_at": LONG_AGO}
        ids = [{"job_id": f"job-{number}", "submission_id": f"job-{number}-a1"} for number in range(count)]
        session.execute(insert(Attempt), [of_each | each for each in ids])
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def plan_of(database: Database, query: Callable[[Session], Any]) -> str:
    """How the database finds the rows of a query."""
    found: list[tuple[str, Any]] = []

    def note(_c: object, _u: object, statement: str, parameters: Any, *_: object) -> None:
        found.append((statement, parameters))

    with database.read() as session:
        if not database.is_sqlite:
            session.execute(text("SET LOCAL enable_seqscan = off"))  # a few rows are read faster without an index
        event.listen(database.engine, "before_cursor_execute", note)
        try:
            query(session)
        finally:
            event.remove(database.engine, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        ((statement, parameters),) = [each for each in found if each[0].startswith("SELECT")]
        rows = session.connection().exec_driver_sql(f"{explain} {statement}", parameters)
        return "\n".join(str(row[-1]) for row in rows)


@pytest.mark.parametrize("name", QUERIES)
def test_the_loop_finds_by_index_what_it_looks_for(database, name):
    many_ended(database)
    query, indexes = QUERIES[name]
    plan = plan_of(database, query)
    used = {
        each.replace("sqlite_autoindex_", "pk_").removesuffix("_1")
        for each in re.findall(r"(?:ix|pk|sqlite)_\w+", plan)
    }
    assert used <= indexes, plan
    assert used, plan
    assert not re.search(r"SCAN \w+$|Seq Scan", plan, re.MULTILINE), plan


class Writes:
    """Transactions that write, and the statements in them that change rows."""

    def __init__(self) -> None:
        self.transactions = 0
        self.rows: list[int] = []


@pytest.fixture
def writes(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writes]:
    counted, original = Writes(), Database.session

    @contextmanager
    def session(database: Database) -> Iterator[Session]:
        counted.transactions += 1
        with original(database) as made:
            yield made

    def note(_c: object, _u: object, statement: str, parameters: Any, _x: object, many: bool) -> None:
        if statement.startswith("UPDATE job"):
            counted.rows.append(len(parameters) if many else 1)

    monkeypatch.setattr(Database, "session", session)
    event.listen(world.database.engine, "before_cursor_execute", note)
    yield counted
    event.remove(world.database.engine, "before_cursor_execute", note)


def test_why_jobs_wait_is_written_at_once_only_where_it_changed_and_into_no_history(world, writes):
    for _ in range(2):
        world.running()
    waiting = [world.add() for _ in range(12)]
    recovering = world.add(state="recovering", reason="node_lost", attempts=0)
    writes.transactions = 0
    world.reconciler.round()
    assert writes.transactions == 1
    said = {job_id: job_of(world.database, job_id).message for job_id in (*waiting, recovering)}
    assert set(said.values()) == {"Waits for resources: needs 2 CPUs, 0 free, 4 in the cluster."}
    assert job_of(world.database, waiting[0]).reason == "insufficient_resources"
    assert job_of(world.database, recovering).reason == "node_lost"
    for _ in range(3):
        world.reconciler.round()
    assert writes.transactions == 1, "nothing has changed"
    world.ray.cpus = 5
    writes.rows.clear()
    world.reconciler.round()
    assert (writes.transactions, writes.rows) == (2, [13])
    assert job_of(world.database, waiting[3]).message.startswith("Waits for resources: needs 2 CPUs, 1 free")
    assert [event for job_id in said for event in events_of(world.database, job_id)] == []
    world.ray.cpus = 6
    world.rounds()
    assert world.state(recovering) == "starting", "what was remembered is no longer true"


def test_a_waiting_job_that_is_changed_is_read_again(world):
    for _ in range(2):
        world.running()
    first, second = world.add(), world.add()
    world.rounds(2)
    with world.database.session() as session:
        repository.get(session, second).priority = 5
    world.verb(first, Verb.PAUSE)
    world.ray.cpus = 6
    world.rounds()
    assert (world.state(first), world.state(second)) == ("paused", "starting")


def test_a_job_that_waits_out_its_back_off_starts_though_nothing_else_changes(world):
    """The decisions of a round hold until then, and no longer."""
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST, message="A node was lost."))
    world.rounds()
    with world.database.session() as session:
        repository.get(session, job_id).not_before = datetime.now(UTC) + timedelta(seconds=1.5)
    world.reconciler.round()
    states = set()
    until = datetime.now(UTC) + timedelta(seconds=60)
    while "starting" not in states and datetime.now(UTC) < until:
        world.reconciler.round()
        states.add(world.state(job_id))
    assert "starting" in states


def test_what_is_new_of_all_running_jobs_is_written_at_once(world, writes):
    world.ray.cpus = 20
    running = [world.running() for _ in range(5)]
    world.rounds(2)
    writes.transactions = 0
    for _ in range(3):
        world.reconciler.round()
    assert writes.transactions == 0, "nothing is new"
    for step, job_id in enumerate(running):
        run = world.mlflow.runs[f"run-{job_id}"]
        values = {metric_keys.SAMPLES: 64.0 * step, metric_keys.LOSS: 0.5}
        run.tags[names.TAG_NEWEST] = Newest(attempt=1, step=step, values=values).model_dump_json()
        run.tags[names.heartbeat(1)] = str(float(run.tags[names.heartbeat(1)]) + 5)
    world.reconciler.round()
    assert writes.transactions == 1
    assert [job_of(world.database, job_id).progress["step"] for job_id in running] == [0, 1, 2, 3, 4]
    beats = [float(world.mlflow.runs[f"run-{job_id}"].tags[names.heartbeat(1)]) for job_id in running]
    assert [attempts_of(world.database, job_id)[0].heartbeat for job_id in running] == beats


def test_progress_that_cannot_be_read_keeps_no_other_from_being_written(world):
    broken, sound = world.running(), world.running()
    newest = Newest(attempt=1, step=3, values={metric_keys.SAMPLES: 192.0})
    world.mlflow.runs[f"run-{sound}"].tags[names.TAG_NEWEST] = newest.model_dump_json()
    world.mlflow.runs[f"run-{broken}"].tags[names.TAG_NEWEST] = "{"
    world.reconciler.round()
    assert job_of(world.database, sound).progress["step"] == 3
    assert world.state(broken) == "running"


def test_a_round_asks_ray_and_mlflow_once_for_all_running_jobs(world, monkeypatch):
    world.ray.cpus = 20
    for _ in range(5):
        world.running()
    asked: list[str] = []
    for part, name in (
        (world.ray, "submissions"),
        (world.ray, "state"),
        (world.mlflow, "views"),
        (world.mlflow, "run"),
    ):
        original = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *given, _o=original, _n=name: asked.append(_n) or _o(*given))
    world.reconciler.round()
    assert asked == ["submissions", "views"]


def test_the_loops_word_does_not_overwrite_what_was_changed_meanwhile(database):
    job_id = add_job(database)
    revision = job_of(database, job_id).revision
    with database.session() as session:
        repository.get(session, job_id).message = "what a person did"
    with database.session() as session:
        repository.explain_waiting(session, [repository.Explanation(job_id, revision, None, "Waits.")])
    assert job_of(database, job_id).message == "what a person did"

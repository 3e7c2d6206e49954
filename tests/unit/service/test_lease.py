"""The lease: one controller at a time, whatever happens to it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from live import poll
from postgres_server import PostgresServer
from service_fakes import add_job, job_of

from service.controller.lease import Lease, LeaseLost, LeaseView, named, view
from service.db.database import Database
from service.db.tables import now
from service.jobs import repository

pytestmark = pytest.mark.both_databases

LENGTH = 10.0


@dataclass
class Hosts:
    """Processes on one database, with a clock that tests set. Each has a connection and a lease of its own."""

    url: str
    time: float = 1000.0
    databases: list[Database] = field(default_factory=list)

    def lease(self, *, standby: bool = True, **more: Any) -> Lease:
        database = Database(self.url)
        self.databases.append(database)
        return Lease(database, LENGTH, standby=standby, clock=lambda: self.time, **more)

    def holder(self) -> Lease:
        lease = self.lease()
        lease.tick()
        assert lease.held()
        return lease


@pytest.fixture
def hosts(database_url: str) -> Iterator[Hosts]:
    hosts = Hosts(database_url)
    yield hosts
    for database in hosts.databases:
        database.close()


def write(database: Database, lease: Lease, job_id: str, name: str) -> None:
    """A transaction of a controller."""
    with database.session() as session:
        lease.guard(session)
        repository.get(session, job_id).name = name


def row(database: Database) -> LeaseView | None:
    with database.read() as session:
        return view(session)


def test_the_first_one_has_it_while_it_beats(hosts):
    first, second = hosts.holder(), hosts.lease()
    for _ in range(50):
        hosts.time += LENGTH / 4
        second.tick()
        first.tick()
        assert first.held()
        assert not second.held()
    assert second.refusal is None


def test_another_takes_over_from_one_that_was_killed_and_not_before_its_time(hosts):
    first, second = hosts.holder(), hosts.lease()
    second.tick()
    hosts.time += LENGTH - 0.1
    second.tick()
    assert not second.held()
    hosts.time += 0.2
    second.tick()
    assert second.held()
    assert not first.held(), "it counts itself out before another can have taken over"


def test_the_time_runs_from_when_the_last_beat_was_seen(hosts):
    first, second = hosts.holder(), hosts.lease()
    second.tick()
    hosts.time += LENGTH - 0.1
    first.tick()
    hosts.time += 0.2
    second.tick()
    hosts.time += LENGTH - 0.2
    second.tick()
    assert not second.held()
    hosts.time += 0.4
    second.tick()
    assert second.held()


def test_one_that_was_paused_cannot_write_after_another_took_over(hosts, database):
    job_id = add_job(database)
    paused, second = hosts.holder(), hosts.lease()
    write(database, paused, job_id, "before")
    second.tick()
    hosts.time += 2 * LENGTH
    second.tick()
    hosts.time -= 2 * LENGTH  # its clock stood still with it: by that it holds the lease
    assert paused.held()
    with pytest.raises(LeaseLost):
        write(database, paused, job_id, "late")
    assert job_of(database, job_id).name == "before"
    assert not paused.held()
    write(database, second, job_id, "after")
    paused.tick()
    assert not paused.held()
    assert job_of(database, job_id).name == "after"


def test_nobody_takes_over_in_the_middle_of_a_guarded_transaction(hosts, database):
    job_id = add_job(database)
    first, second = hosts.holder(), hosts.lease()
    second.tick()
    hosts.time += 2 * LENGTH
    with ThreadPoolExecutor(1) as pool:
        with database.session() as session:
            first.guard(session)
            taking = pool.submit(second.tick)
            repository.get(session, job_id).name = "whole"
            session.flush()
            assert not second.held()
        taking.result()
    assert second.held()
    assert job_of(database, job_id).name == "whole"
    with pytest.raises(LeaseLost):
        write(database, first, job_id, "late")


def test_a_holder_whose_beats_were_late_goes_on_if_nobody_took_over(hosts, database):
    lease = hosts.holder()
    hosts.time += 3 * LENGTH
    assert not lease.held()
    lease.tick()
    assert lease.held()
    write(database, lease, add_job(database), "fine")


def test_what_was_given_back_is_had_at_once(hosts, database):
    first, second, third = hosts.holder(), hosts.lease(standby=False), hosts.lease(standby=False)
    first.release()
    assert not first.held()
    with pytest.raises(LeaseLost):
        write(database, first, add_job(database), "late")
    second.tick()
    assert second.held()
    third.release()  # of one that never had it nothing changes
    second.tick()
    assert second.held()


@pytest.mark.parametrize("left", ["nothing", "given back", "dead"])
def test_of_several_candidates_at_once_exactly_one_wins(hosts, left):
    candidates = [hosts.lease() for _ in range(6)]
    if left != "nothing":
        before = hosts.holder()
        for candidate in candidates:
            candidate.tick()
        if left == "given back":
            before.release()
        hosts.time += 2 * LENGTH
    start = threading.Barrier(len(candidates))

    def run(candidate: Lease) -> None:
        start.wait()
        candidate.tick()

    with ThreadPoolExecutor(len(candidates)) as pool:
        list(pool.map(run, candidates))
    assert [candidate.held() for candidate in candidates].count(True) == 1
    for candidate in candidates:
        candidate.tick()
    assert [candidate.held() for candidate in candidates].count(True) == 1


def test_one_whose_loop_is_stuck_loses_it(hosts):
    loops: dict[str, bool] = {"first": True, "second": False}
    first = hosts.lease()
    first._healthy = lambda: loops["first"]
    first.tick()
    second = hosts.lease()
    second._healthy = lambda: loops["second"]
    loops["first"] = False
    second.tick()
    hosts.time += 2 * LENGTH
    first.tick()
    second.tick()
    assert not first.held()
    assert not second.held(), "stuck itself, it takes nothing"
    loops["second"] = True
    second.tick()
    assert second.held()
    loops["first"] = True
    first.tick()
    assert not first.held()


def test_readiness_sees_who_holds_it_and_its_last_round(hosts, database):
    assert row(database) is None
    first = hosts.holder()
    seen = row(database)
    assert named(seen.holder) == f"process {os.getpid()} on {socket.gethostname()}"
    assert seen.round_at is None
    first.finished_round()
    first.tick()
    assert timedelta(0) <= now() - row(database).round_at < timedelta(minutes=1)
    first.release()
    assert row(database).holder is None


def test_where_nobody_stands_by_a_second_one_is_refused(hosts):
    told: list[str] = []
    first, second = hosts.holder(), hosts.lease(standby=False, refused=told.append)
    second.tick()
    assert second.refusal is None, "the holder may be dead"
    first.tick()
    second.tick()
    assert told == [second.refusal]
    assert f"process {os.getpid()} on {socket.gethostname()} is the controller" in second.refusal
    assert "RCMAE_RECONCILE=false" in second.refusal
    assert "tests-password" not in second.refusal
    assert first.held()


def test_where_nobody_stands_by_a_dead_ones_lease_is_waited_for(hosts):
    hosts.holder()
    second = hosts.lease(standby=False)
    second.tick()
    hosts.time += LENGTH
    second.tick()
    assert second.held()
    assert second.refusal is None


@pytest.fixture
def start(database_url: str) -> Iterator[Callable[..., Lease]]:
    """Leases with their threads."""
    leases, databases = [], []

    def started(**more: Any) -> Lease:
        databases.append(Database(database_url))
        leases.append(Lease(databases[-1], 0.4, **more))
        leases[-1].start(lambda: True)
        return leases[-1]

    yield started
    for lease in leases:
        lease.release()
    for database in databases:
        database.close()


def test_its_thread_takes_keeps_and_gives_back(start, database):
    first = start(standby=True)
    poll(first.held, bool)
    beat = row(database).beat
    poll(lambda: row(database).beat, lambda seen: seen > beat + 3)
    second = start(standby=True)
    first.release()
    poll(second.held, bool)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_it_survives_a_database_that_is_away(start, postgres: PostgresServer):
    lease = start(standby=True)
    poll(lease.held, bool)
    postgres.kill()
    try:
        poll(lease.held, lambda held: not held)
    finally:
        postgres.start()
    poll(lease.held, bool)

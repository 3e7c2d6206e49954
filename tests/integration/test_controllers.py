"""Controllers and APIs as processes of their own on one database: exactly one acts, whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import poll

from service.controller.lease import LeaseView, view
from service.db.database import Database
from service.db.tables import Job
from service.embedded import processes
from service.jobs import repository

LIMIT_S = 180.0
LEASE_S = "4"


@dataclass
class Process:
    """A controller or an API, with what it logs."""

    popen: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def events(self) -> list[dict[str, Any]]:
        """Its log, of which every line is a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events() if line["event"] == event]

    def end(self, number: signal.Signals) -> int:
        """Its exit status after a signal."""
        self.popen.send_signal(number)
        return self.popen.wait(LIMIT_S)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process by its name and the database's URL; Ray and MLflow are nowhere."""
    started: list[Process] = []

    def call(kind: str, database_url: str, **variables: str) -> Process:
        (port,) = processes.free_ports(1)
        log = tmp_path / f"{len(started)}-{kind}.log"
        uvicorn = "-m uvicorn --factory service.app:create_app --log-level critical --no-access-log --port"
        command = {"controller": ["-m", "service.cli", "controller"], "api": [*uvicorn.split(), str(port)]}[kind]
        environment = os.environ | {
            "RCMAE_DATABASE_URL": database_url,
            "RCMAE_ARTIFACT_ROOT": str(tmp_path),
            "RCMAE_MLFLOW_URL": "http://127.0.0.1:1",
            "RCMAE_RAY_URL": "http://127.0.0.1:1",
            "RCMAE_POLL_INTERVAL_S": "0.1",
            "RCMAE_LEASE_S": LEASE_S,
        }
        with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
            popen = subprocess.Popen(
                [sys.executable, *command],
                env=environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        started.append(Process(popen, log, f"http://127.0.0.1:{port}"))
        return started[-1]

    yield call
    for process in started:
        process.popen.kill()
        process.popen.wait()


@dataclass
class Jobs:
    """The database, looked at from outside."""

    database: Database

    def lease(self) -> LeaseView | None:
        with self.database.read() as session:
            return view(session)

    def holder(self) -> int | None:
        """The number of the process that holds the lease."""
        found = self.lease()
        return int(found.holder.split("/")[1]) if found and found.holder else None

    def acted_on(self) -> None:
        """A job between two attempts that was cancelled: the controller ends it, once."""
        job_id = repository.new_id()
        values = {"kind": "pretrain", "name": "x", "state": "cancelling", "owner": "alice", "priority": 0, "labels": {}}
        spec = {"kind": "pretrain", "dataset": {"uri": "/data"}}
        with self.database.session() as session:
            session.add(Job(id=job_id, spec=spec, dataset_uri="/data", body_sha256="x", **values))
        poll(lambda: self.state(job_id), lambda state: state == "cancelled", LIMIT_S)
        with self.database.read() as session:
            assert [event.actor for event in repository.events(session, job_id, 0, 10)] == ["controller"]

    def state(self, job_id: str) -> str:
        with self.database.read() as session:
            return repository.get(session, job_id).state


@pytest.fixture
def jobs(url: str) -> Iterator[Jobs]:
    database = Database(url)
    database.migrate()
    yield Jobs(database)
    database.close()


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/rcmae.db"
    return request.getfixturevalue("postgres").url("controllers")


def controller_reasons(api: Process) -> list[str] | None:
    """What readiness says of the controller; None while the API does not answer."""
    try:
        reasons = httpx.get(f"{api.url}/readyz", timeout=30).json()["reasons"]
    except httpx.HTTPError:
        return None
    return [reason for reason in reasons if reason.startswith("controller")]


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_of_two_controllers_one_acts_and_the_other_goes_on_when_it_dies(start, jobs, url):
    api = start("api", url, RCMAE_RECONCILE="false")
    poll(lambda: controller_reasons(api), bool, LIMIT_S)  # none is running
    by_pid = {process.pid: process for process in (start("controller", url), start("controller", url))}
    leader = by_pid.pop(poll(jobs.holder, bool, LIMIT_S))
    (second,) = by_pid.values()
    poll(lambda: second.logged("controller_started"), bool, LIMIT_S)
    jobs.acted_on()
    poll(lambda: controller_reasons(api), lambda reasons: reasons == [], LIMIT_S)

    # Paused so long that the other took over, it finds out and writes no more.
    leader.popen.send_signal(signal.SIGSTOP)
    poll(jobs.holder, lambda pid: pid == second.pid, LIMIT_S)
    jobs.acted_on()
    leader.popen.send_signal(signal.SIGCONT)
    poll(lambda: leader.logged("lease_lost") + leader.logged("round_given_up"), bool, LIMIT_S)
    jobs.acted_on()
    assert jobs.holder() == second.pid

    assert second.end(signal.SIGKILL) == -signal.SIGKILL
    poll(jobs.holder, lambda pid: pid == leader.pid, LIMIT_S)
    jobs.acted_on()

    # Told to end it gives the lease back: the next one need not wait until it has stood still.
    third = start("controller", url)
    poll(lambda: third.logged("controller_started"), bool, LIMIT_S)
    assert leader.end(signal.SIGTERM) == 0
    assert leader.logged("lease_given_back")
    poll(jobs.holder, lambda pid: pid == third.pid, LIMIT_S)
    assert third.logged("lease_taken")[0]["before"] is None
    jobs.acted_on()
    assert third.end(signal.SIGINT) == 0
    assert jobs.holder() is None
    assert "none is running" in poll(lambda: controller_reasons(api), bool, LIMIT_S)[0]
    assert not api.logged("lease_taken")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_on_sqlite_a_second_one_is_refused_and_a_dead_one_replaced(start, jobs, url):
    first = start("controller", url)
    poll(jobs.holder, lambda pid: pid == first.pid, LIMIT_S)
    jobs.acted_on()
    refused, api = start("controller", url), start("api", url)
    assert refused.popen.wait(LIMIT_S) == 1
    told = " ".join(refused.log.with_suffix(".err").read_text().split())
    assert f"process {first.pid} on" in told
    assert "SQLite allows one" in told
    assert api.popen.wait(LIMIT_S) != 0, "an API that was to reconcile neither"
    assert f"process {first.pid} on" in api.logged("controller_refused")[0]["detail"]
    jobs.acted_on()

    first.end(signal.SIGKILL)
    api = start("api", url)
    poll(jobs.holder, lambda pid: pid == api.pid, LIMIT_S)
    jobs.acted_on()
    api.end(signal.SIGTERM)
    assert api.logged("service_ended")
    assert jobs.holder() is None

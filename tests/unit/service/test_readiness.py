"""Readiness: a reason for whatever is missing, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from postgres_server import PASSWORD, PostgresServer
from service_fakes import FakeMlflow, FakeRay, job_of
from service_world import World

from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.context.app_state import AppState
from service.controller.context import ControllerContext
from service.controller.lease import Lease
from service.controller.loop import Reconciler
from service.db.database import Database
from service.db.tables import now
from service.kinds.registry import KINDS
from service.observability.readiness import Readiness
from service.settings import Settings


@pytest.fixture
def parts(settings: Settings, database: Database, ray: FakeRay, mlflow: FakeMlflow, root) -> AppState:
    """A service in which all is well."""
    settings = settings.model_copy(update={"reconcile": True, "poll_interval_s": 0.05})
    artifacts = Artifacts(str(root))
    studies = Studies(settings.study_url)
    return AppState(settings, database, ray, mlflow, artifacts, studies, KINDS)


@pytest.fixture
def reconciler(parts: AppState, database: Database) -> Iterator[Reconciler]:
    """The loop of such a service."""
    reconciler = Reconciler(ControllerContext(parts, KINDS, Lease(database, 10, standby=True)))
    reconciler.start()
    yield reconciler
    reconciler.stop()


@pytest.fixture
def hang() -> Iterator[Callable[[], None]]:
    """What hangs until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


def test_a_service_with_all_it_needs_is_ready(parts, reconciler):
    assert Readiness(parts, reconciler).reasons() == []


def test_whatever_is_away_is_told(parts, reconciler, ray, mlflow, root):
    readiness = Readiness(parts, reconciler)
    ray.reachable = mlflow.reachable = False
    root.rmdir()
    mlflow_away, ray_away, storage_away = readiness.reasons()
    assert mlflow_away == "MLflow: connection refused"
    assert ray_away == "Ray: connection refused"
    assert storage_away.startswith(f"storage: {root}")
    root.mkdir()
    ray.reachable = mlflow.reachable = True
    assert readiness.reasons() == []
    ray.cpus = 0
    assert readiness.reasons() == ["Ray: no node has joined the cluster yet"]


@pytest.mark.parametrize(("part", "name"), [("mlflow", "MLflow"), ("ray", "Ray")])
def test_what_a_probe_finds_answering_the_controller_tries_at_once(world: World, part, name):
    readiness, job_id = Readiness(world.app_state, world.reconciler), world.add()
    dependency = getattr(world, part)
    dependency.reachable = False
    world.reconciler.round()
    dependency.reachable = True
    world.reconciler.round()  # it is not tried so soon
    assert f"{name} does not answer: connection refused" in job_of(world.database, job_id).message
    readiness.reasons()
    world.reconciler.round()
    assert job_of(world.database, job_id).state == "starting"


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_database_that_is_away_is_told(parts, reconciler, postgres: PostgresServer):
    postgres.kill()
    try:
        for loop in (reconciler, None):
            (reason,) = Readiness(parts, loop).reasons()
            assert reason.startswith("database: ")
            assert "refused" in reason
            assert PASSWORD not in reason
    finally:
        postgres.start()
    assert Readiness(parts, reconciler).reasons() == []


def test_what_hangs_holds_up_nothing_and_is_asked_once(parts, reconciler, mlflow, hang, monkeypatch):
    asked = []
    monkeypatch.setattr(mlflow, "ping", lambda: (asked.append(1), hang()))
    readiness = Readiness(parts, reconciler, limit_s=0.2)
    for _ in range(5):
        assert any(reason.startswith("MLflow: no answer for") for reason in readiness.reasons())
    assert len(asked) == 1


def test_a_loop_that_hangs_is_told(parts, reconciler, hang, monkeypatch):
    entered = threading.Event()
    monkeypatch.setattr(reconciler, "round", lambda: (entered.set(), hang()))
    assert entered.wait(60)
    monkeypatch.setattr(reconciler._loop, "finished_at", time.monotonic() - 31)
    (reason,) = Readiness(parts, reconciler).reasons()
    assert reason.startswith("controller: the reconciler has not finished a round for 3")


def test_one_that_stands_by_is_ready(parts, reconciler, database):
    standby = Reconciler(replace(reconciler.context, lease=Lease(database, 10, standby=True)))
    standby.start()
    assert Readiness(parts, standby).reasons() == []
    standby.stop()


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("nothing", "none is running: start one with `rcmae controller`"),
        ("given back", "none is running: start one with `rcmae controller`"),
        ("taken", "has not finished a round yet"),
        ("a round", None),
        ("an old round", "has not finished a round for 1"),
    ],
)
def test_an_api_by_itself_looks_at_the_lease(settings, database, ray, mlflow, root, left, said, monkeypatch):
    lease = Lease(database, 10, standby=True)
    if left != "nothing":
        lease.tick()
    if left.endswith("round"):
        moment = now() - timedelta(seconds=120 if left == "an old round" else 0)
        monkeypatch.setattr("service.controller.lease.now", lambda: moment)
        lease.finished_round()
        lease.tick()
    if left == "given back":
        lease.release()
    artifacts, studies = Artifacts(str(root)), Studies(settings.study_url)
    reasons = Readiness(AppState(settings, database, ray, mlflow, artifacts, studies, KINDS), None).reasons()
    assert len(reasons) == (said is not None)
    assert said is None or said in reasons[0]

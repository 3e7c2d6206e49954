"""A migrated database, the application over stand-ins, and a client for each role."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from live import poll
from postgres_server import PostgresServer
from scripted_server import ScriptedServer
from search_files import SearchFiles
from service_fakes import FakeMlflow, FakeRay
from service_world import World
from sqlalchemy import text
from structlog.testing import capture_logs

from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.app import attach, build_app, configure_logs
from service.auth.caller import sha256
from service.auth.scopes import Role
from service.client import errors as client_errors
from service.context.app_state import AppState
from service.controller import sweeps
from service.db.database import Database
from service.db.tables import Base, RegistryCheck, Token
from service.kinds.registry import KINDS
from service.settings import Settings

DATABASES = "RCMAE_TEST_DATABASES"
ROLES = {
    "viewer": Role.VIEWER,
    "alice": Role.SUBMITTER,
    "bob": Role.SUBMITTER,
    "operator": Role.OPERATOR,
    "admin": Role.ADMIN,
}


def token_of(owner: str) -> str:
    return f"token-of-{owner}-0123456789"


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    """Logged as the service does: structlog's default takes seconds for a traceback."""
    configure_logs()


def _tokens() -> list[Token]:
    return [Token(sha256=sha256(token_of(owner)), owner=owner, role=role) for owner, role in ROLES.items()]


def fill(url: str) -> None:
    """Migrate a new database and make a token of each role known."""
    database = Database(url)
    database.migrate()
    with database.session() as session:
        session.add_all(_tokens())
    database.close()


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled SQLite database to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    fill(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def shared_url(postgres: PostgresServer) -> str:
    """A filled database in Postgres, that tests use one after the other: making one takes longer than most tests."""
    url = postgres.url("shared")
    fill(url)
    return url


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On SQLite; on Postgres too what is marked so, or everything where RCMAE_TEST_DATABASES says both."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "database_url" in metafunc.fixturenames and "database_url" not in chosen:
        both = metafunc.definition.get_closest_marker("both_databases") or os.environ.get(DATABASES) == "both"
        metafunc.parametrize("database_url", ["sqlite", "postgres"] if both else ["sqlite"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that knows a token of each role and nothing else."""
    if request.param == "sqlite":
        path = tmp_path / "rcmae.db"
        shutil.copy(request.getfixturevalue("empty_file"), path)
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("shared_url")
    database = Database(url)
    with database.session() as session:
        # As a superuser may, who can switch off what refuses to empty the audit log.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("TRUNCATE " + ", ".join(table.name for table in Base.metadata.sorted_tables)))
        session.add_all([*_tokens(), RegistryCheck(id=1)])  # as of a new service, which has no older versions to read
    database.close()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The artifact root."""
    root = tmp_path / "artifacts"
    root.mkdir()
    return root


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def mlflow(root: Path) -> FakeMlflow:
    return FakeMlflow(root)


@pytest.fixture
def settings(database_url: str, root: Path, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        study_url=f"sqlite:///{tmp_path / 'studies.db'}",
        artifact_root=str(root),
        reconcile=False,
        allowed_hosts=("testserver", "hub.test"),
        failures_per_minute=100_000,
        # Nothing listens there: a test that reaches for a real server fails at once.
        ray_url="http://127.0.0.1:1",
        mlflow_url="http://127.0.0.1:1",
    )


@pytest.fixture(scope="session")
def routes() -> FastAPI:
    """The application with nothing behind it: routes, middleware and handlers take longer to build than most tests."""
    return build_app(Settings.model_fields["body_limit_bytes"].default)


@pytest.fixture
def app(routes: FastAPI, settings: Settings, ray: FakeRay, mlflow: FakeMlflow) -> FastAPI:
    """The application over stand-ins for Ray and MLflow."""
    database, studies = Database(settings.database_url), Studies(settings.study_url)
    attach(routes, AppState(settings, database, ray, mlflow, Artifacts(settings.artifact_root), studies, KINDS), None)
    return routes


@dataclass(frozen=True)
class Clients:
    """One client a role; alice and bob both submit."""

    anonymous: TestClient
    viewer: TestClient
    alice: TestClient
    bob: TestClient
    operator: TestClient
    admin: TestClient


@pytest.fixture
def clients(app: FastAPI) -> Iterator[Clients]:
    with TestClient(app) as anonymous:
        yield Clients(
            anonymous,
            **{owner: TestClient(app, headers={"Authorization": f"Bearer {token_of(owner)}"}) for owner in ROLES},
        )


@pytest.fixture
def api(clients: Clients) -> TestClient:
    """A submitter's client."""
    return clients.alice


@pytest.fixture
def browsers(app: FastAPI, clients: Clients) -> Clients:  # noqa: ARG001 - they have started it
    """A browser for each role that has logged in, and one that has not; none follows redirects."""
    found = {owner: TestClient(app, follow_redirects=False) for owner in ("anonymous", *ROLES)}
    for owner in ROLES:
        assert found[owner].post("/login", data={"token": token_of(owner)}).status_code == 303
    return Clients(**found)


@pytest.fixture
def world(settings: Settings, database: Database, ray: FakeRay, mlflow: FakeMlflow) -> World:
    return World(settings, database, ray, mlflow)


@pytest.fixture
def served(routes: FastAPI, world: World) -> TestClient:
    """Alice's client of a service whose reconciler a test moves by hand."""
    attach(routes, world.app_state, None)
    return TestClient(routes, headers={"Authorization": f"Bearer {token_of('alice')}"})


@pytest.fixture
def address(served: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The service on a port, that the command line talks to, for a user who has verified nothing yet."""
    server = uvicorn.Server(uvicorn.Config(served.app, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    poll(lambda: server.started, bool)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    monkeypatch.setenv("RCMAE_URL", url)
    monkeypatch.setenv("RCMAE_TOKEN", token_of("alice"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield url
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def empty_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A studies' database to copy: making one takes longer than most tests."""
    path = tmp_path_factory.mktemp("studies") / "studies.db"
    studies = Studies(f"sqlite:///{path}")
    studies.study("none")
    studies.close()
    return path


@pytest.fixture
def searches(
    settings: Settings, tmp_path: Path, empty_studies: Path, database: Database, mlflow: FakeMlflow
) -> Iterator[SearchFiles]:
    """Searches with trials in the studies' database that the application has."""
    shutil.copy(empty_studies, tmp_path / "studies.db")
    studies = Studies(settings.study_url)
    yield SearchFiles(database, studies, mlflow)
    studies.close()


@pytest.fixture
def swept(world, monkeypatch) -> Callable[[], list[dict[str, Any]]]:
    """Makes a round and each sweep; gives what was logged of the sweeps."""
    monkeypatch.setattr(sweeps, "log", structlog.get_logger())  # a cached logger cannot be captured

    def sweep() -> list[dict[str, Any]]:
        with capture_logs() as lines:
            world.rounds()
            world.sweep()
        return [line for line in lines if line["event"].startswith("swept")]

    return sweep


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """The server that the command line talks to, answering as it is told."""
    made = ScriptedServer()
    monkeypatch.setenv("RCMAE_URL", made.url)
    monkeypatch.setenv("RCMAE_TOKEN", "secret")
    monkeypatch.setattr(client_errors, "FIRST_PAUSE_S", 0.01)
    yield made
    made.close()

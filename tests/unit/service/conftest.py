"""A migrated database, the application over stand-ins, and a client for each role."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from service_fakes import FakeMlflow, FakeRay
from service_world import World

from service.app import configure_logs, create_app
from service.auth import Role, ensure_token
from service.db import Database
from service.settings import Settings

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


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file that knows a token of each role, to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    for owner, role in ROLES.items():
        ensure_token(database, token_of(owner), owner, role)
    database.close()
    return path


@pytest.fixture
def database_url(empty_database: Path, tmp_path: Path) -> str:
    path = tmp_path / "rcmae.db"
    shutil.copy(empty_database, path)
    return f"sqlite:///{path}"


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
def settings(database_url: str, root: Path) -> Settings:
    return Settings(
        database_url=database_url,
        artifact_root=str(root),
        reconcile=False,
        # Nothing listens there: a test that reaches for a real server fails at once.
        ray_url="http://127.0.0.1:1",
        mlflow_url="http://127.0.0.1:1",
    )


@pytest.fixture
def app(settings: Settings, ray: FakeRay, mlflow: FakeMlflow) -> FastAPI:
    app = create_app(settings)
    app.state.parts = replace(app.state.parts, ray=ray, mlflow=mlflow)
    return app


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
def world(settings: Settings, database: Database, ray: FakeRay, mlflow: FakeMlflow) -> World:
    return World(settings, database, ray, mlflow)

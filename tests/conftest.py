"""One real embedded stack, S3 server and Postgres server for every test that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from local_stack import Stack, running_stack
from postgres_server import PostgresServer, postgres_server
from s3_server import FaultProxy, S3Server, s3_server

from trainer.storage import S3

UseS3 = Callable[[dict[str, str]], None]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Started once for the whole run. A test that ends a part leaves when all parts work again."""
    with running_stack(tmp_path_factory.mktemp("stack") / "state") as found:
        yield found


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Started once for the whole run; every test takes a bucket or a prefix of its own."""
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Started once for the whole run; every test takes a database of its own, and leaves when the server is up."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def s3_proxy(s3: S3Server) -> Iterator[FaultProxy]:
    """Another way to the server, that fails as it is told."""
    proxy = FaultProxy(s3.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[UseS3]:
    """Give this process an environment for S3, as `S3Server.environment` makes it; undone at the end."""

    def use(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        S3.clear_instance_cache()

    yield use
    S3.clear_instance_cache()

"""One real embedded stack for all tests that ask for it, and an S3 and a Postgres server in each of their processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import hypothesis
import pytest
from local_stack import S3_SECRET, Stack, running_stack
from postgres_server import PostgresServer, postgres_server
from s3_server import FaultProxy, S3Server, s3_server
from slow_parts import left_out
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from trainer.storage import S3

UseS3 = Callable[[dict[str, str]], None]


hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("tests")


class InTwoProcesses(LoadFileScheduling):
    """Tests of one file stay in one process, and so do those of a folder that share one stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next(
            (folder for folder in ("tests/integration", "tests/faults", "tests/browser") if file.startswith(folder)),
            file,
        )


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> InTwoProcesses:
    """For ``--numprocesses``; without it all tests run in this process."""
    return InTwoProcesses(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is in another part of the slow tests. A browser or fault test that fails is run once more: both
    runs are printed at the end, under "flaky".
    """
    elsewhere = left_out(items)
    items[:] = [item for item in items if item not in elsewhere]
    config.hook.pytest_deselected(items=elsewhere)
    for item in items:
        if item.nodeid.startswith(("tests/browser", "tests/faults")):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    first_runs = terminalreporter.stats.get("rerun", [])
    if not first_runs:
        return
    terminalreporter.section("flaky")
    ends = {
        report.nodeid: outcome
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" or outcome == "error"
    }
    for report in first_runs:
        terminalreporter.write_line(f"{report.nodeid}: failed, then {ends.get(report.nodeid, 'did not end')}")
        why = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        for line in [*why[:20], report.longreprtext.strip().splitlines()[-1]]:
            terminalreporter.write_line(f"    {line}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Started once for the whole run. A test that ends a part leaves when all parts work again."""
    credentials = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": S3_SECRET}
    with running_stack(tmp_path_factory.mktemp("stack") / "state", **credentials) as found:
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


class Pauses:
    """A clock for `trainer.patience`: pauses pass at once, and what was away may come back in one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.mend: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.mend()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Nobody waits for what `trainer.patience` tries again."""
    found = Pauses()
    monkeypatch.setattr("trainer.patience.time", found)
    return found


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

"""One stack for all faults, and the table of what became of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_gates import Gates
from fault_nodes import cpus
from fault_strikes import is_wanted
from fault_table import TABLE
from fault_world import CPUS, World
from local_stack import running_stack
from s3_server import FaultProxy
from slow_parts import PART

from service.embedded import processes


@pytest.fixture(scope="session")
def world(s3, postgres, tmp_path_factory) -> Iterator[World]:
    """Started once; a fault leaves when all parts work again."""
    state_dir, gates = tmp_path_factory.mktemp("faults") / "state", Gates(tmp_path_factory.mktemp("gates"))
    proxy = FaultProxy(s3.endpoint)
    variables = s3.environment(proxy.endpoint) | gates.environment() | cpus(CPUS)
    places = ("--artifact-root", f"{s3.bucket('faults')}/artifacts", "--database-url", postgres.url("faults"))
    (port,) = processes.free_ports(1)  # other stacks may start on this machine now
    with running_stack(state_dir, f"--port={port}", *places, **variables) as stack:
        yield World(stack, s3, proxy, postgres, gates, variables)
    proxy.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the cells that are not in the part of the table that is wanted."""
    cells = {item: item.callspec.params for item in items if "struck" in getattr(item, "fixturenames", ())}
    items[:] = [item for item in items if item not in cells or is_wanted(cells[item]["struck"], cells[item]["phase"])]


def pytest_report_header() -> str:
    return f"faults: RCMAE_FAULT_SEED={TABLE.seed} RCMAE_SLOW_PART={PART}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of each fault in each phase; also into the file that RCMAE_FAULT_TABLE names."""
    if not TABLE.rows:
        return
    text = TABLE.markdown()
    terminalreporter.section("faults")
    terminalreporter.write_line(text)
    if file := os.environ.get("RCMAE_FAULT_TABLE"):
        Path(file).write_text(text + "\n")

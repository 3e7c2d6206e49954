"""A second Ray node on this machine, that comes and goes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live import poll
from local_stack import Stack

from service.adapters.ray_cluster import RayCluster
from service.client.server import HOST
from service.embedded import parts, processes

SECOND_HOST = "127.0.0.2"
SECOND_NODE = "second-node"
"""Its part's name among the stack's processes."""
JOIN = """
import types
from ray._private import ray_constants
from ray.scripts import scripts
# Ray takes a head on the loopback interface for one on macOS, and lets no second node in.
joining = types.ModuleType("ray_constants")
vars(joining).update(vars(ray_constants), ENABLE_RAY_CLUSTER=True)
scripts.ray_constants = joining
scripts.main()
"""


def cpus(count: int) -> dict[str, str]:
    """The variable with which a node has so many CPUs, however many the machine has."""
    return {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": {count}}}'}


@contextmanager
def second_node(
    stack: Stack, count: int, environment: dict[str, str], drain_s: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """Another raylet, with so many CPUs, joined by `ray start`; all its processes are killed in the end.

    Gives `ray start`, which drains the node for ``drain_s`` seconds when it gets SIGTERM.
    """
    agent, metrics = processes.free_ports(2)
    state = stack.state
    with pytest.MonkeyPatch.context() as patch, stack.folder.log_of(SECOND_NODE).open("ab") as log:
        for name, value in {**environment, **cpus(count)}.items():
            patch.setenv(name, value)
        variables = parts.environment("ray", stack.folder, state)
        variables |= {processes.PART_VARIABLE: SECOND_NODE, "DASHBOARD_METRIC_PORT": str(metrics)}
        variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(drain_s)
        command = [
            *(sys.executable, "-c", JOIN, "start", f"--address={HOST}:{state.ports.ray_gcs}", "--block"),
            *(f"--node-ip-address={SECOND_HOST}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"),
            *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={256 * 2**20}"),
        ]
        node = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        poll(lambda: alive(stack), lambda found: sorted(found) == [HOST, SECOND_HOST])
        yield node
    finally:
        kill_second_node(stack)
        node.wait()


def kill_second_node(stack: Stack) -> None:
    """SIGKILL of the raylet and of all that runs there."""
    processes.sweep(stack.state.id, SECOND_NODE)


def alive(stack: Stack) -> list[str]:
    """Addresses of the nodes that Ray takes for living."""
    ray = RayCluster(f"http://{HOST}:{stack.state.ports.ray_dashboard}", stack.folder.ray_token, sys.executable)
    try:
        return [node.ip for node in ray.shape().nodes]
    finally:
        ray.close()

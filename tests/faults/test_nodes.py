"""A cluster of two nodes on one machine, with artifacts in S3: one of them is lost under a running job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from live import final_weights, make_spec, poll, wait, wait_state
from local_stack import Stack, running_stack

from service.adapters.storage import Artifacts
from service.embedded import parts, processes
from service.embedded.parts import HOST
from service.jobs.schemas import JobView, State

pytestmark = pytest.mark.slow

SECOND_HOST = "127.0.0.2"
ONE_CPU = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}
"""A node holds one worker and no more, however many CPUs the machine has."""
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


@pytest.fixture(scope="module")
def cluster(s3, tmp_path_factory) -> Iterator[Stack]:
    """A stack whose head has one CPU."""
    root = f"{s3.bucket('nodes')}/artifacts"
    state_dir = tmp_path_factory.mktemp("nodes") / "state"
    with running_stack(state_dir, "--artifact-root", root, **s3.environment(), **ONE_CPU) as stack:
        yield stack


@pytest.fixture
def artifacts(s3, use_s3, cluster) -> Artifacts:
    use_s3(s3.environment())
    return Artifacts(cluster.folder.artifact_root)


@contextmanager
def second_node(cluster: Stack, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Another raylet with one CPU, joined by `ray start`; all its processes are killed in the end."""
    agent, metrics = processes.free_ports(2)
    state = cluster.state
    with pytest.MonkeyPatch.context() as patch, cluster.folder.log_of("second-node").open("ab") as log:
        for name, value in {**environment, **ONE_CPU}.items():
            patch.setenv(name, value)
        variables = parts.environment("ray", cluster.folder, state)
        variables |= {processes.PART_VARIABLE: "second-node", "DASHBOARD_METRIC_PORT": str(metrics)}
        command = [
            *(sys.executable, "-c", JOIN, "start", f"--address={HOST}:{state.ports.ray_gcs}", "--block"),
            *(f"--node-ip-address={SECOND_HOST}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"),
            *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={256 * 2**20}"),
        ]
        node = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        poll(lambda: alive(cluster), lambda found: sorted(found) == [HOST, SECOND_HOST])
        yield node
    finally:
        processes.sweep(state.id, "second-node")
        node.wait()


def alive(cluster: Stack) -> list[str]:
    """Addresses of the living nodes."""
    url = f"http://{HOST}:{cluster.state.ports.ray_dashboard}/api/v0/nodes?detail=1"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {cluster.folder.ray_token.read_text()}"})
    nodes = answer.json()["data"]["result"]["result"]
    return [node["node_ip"] for node in nodes if node["state"] == "ALIVE"]


def workers(cluster: Stack, part: str) -> int:
    """Training workers among the processes of one node."""
    found = processes.members(cluster.state.id, part)
    return sum("RayTrainWorker" in " ".join(process.cmdline()) for process in found)


def submitted(cluster: Stack, name: str) -> JobView:
    return cluster.client.submit(make_spec(name=name, register_as=name))


def test_a_lost_node_is_waited_for_and_the_end_is_bit_identical(cluster, artifacts, s3):
    with second_node(cluster, s3.environment()):
        undisturbed = wait_state(cluster, submitted(cluster, "undisturbed").id, State.SUCCEEDED)
        job = submitted(cluster, "lost-node")
        wait(
            cluster,
            job.id,
            lambda seen: seen.progress is not None and seen.progress.step > 25 and seen.progress.step % 10,
        )
        assert (workers(cluster, "ray"), workers(cluster, "second-node")) == (1, 1)
        processes.sweep(cluster.state.id, "second-node")
        lost = wait(cluster, job.id, lambda seen: seen.state is State.RECOVERING)
        assert lost.reason == "node_lost"
        waiting = wait(cluster, job.id, lambda seen: "CPUs" in seen.message)
        assert (waiting.state, waiting.reason) == (State.RECOVERING, "node_lost")
        assert "needs 2 CPUs, 1 in the cluster" in waiting.message
    with second_node(cluster, s3.environment()):
        ended = wait_state(cluster, job.id, State.SUCCEEDED)
    attempts = cluster.client.attempts(job.id)
    assert [(attempt.state, attempt.reason) for attempt in attempts] == [("failed", "node_lost"), ("succeeded", None)]
    told = "\n".join(event.message for event in cluster.client.events(job.id))
    assert f"the node at {SECOND_HOST} was lost" in told
    assert "not counted as a failure" in told
    log = "\n".join(line.message for line in cluster.client.logs(job.id, attempt=2, source="rank-0").items)
    assert "Resuming at step" in log
    assert final_weights(artifacts, cluster, ended) == final_weights(artifacts, cluster, undisturbed)
    assert cluster.client.backbone("lost-node").versions == [1]

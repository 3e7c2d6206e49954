"""Real jobs whose processes get SIGTERM, or whose node is drained: nothing that was trained is lost."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import psutil
import pytest
from live import artifacts, make_spec, members, poll, wait, wait_state
from local_stack import Stack

from service.adapters.ray_cluster import RayCluster
from service.client.server import HOST
from service.jobs.schemas import JobView
from service.jobs.state import State

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {"optimization": {"epochs": 2000}, "checkpoint": {"every_epochs": 2000, "every_minutes": None}}
"""Far longer than a test, without a checkpoint of its own in that time."""


def training(stack: Stack, name: str, **parts: Any) -> JobView:
    """A job that has trained some steps."""
    job = stack.client.submit(make_spec(name=name, **LONG | parts))
    return wait(stack, job.id, lambda seen: seen.progress is not None and seen.progress.step > 20)


def processes_of(stack: Stack, word: str) -> list[psutil.Process]:
    return [process for process in members(stack, word) if process.status() != psutil.STATUS_ZOMBIE]


def resumed(stack: Stack, job: JobView) -> tuple[int, int]:
    """The step that the first attempt stored, and the one that the second began with."""
    wait(stack, job.id, lambda seen: seen.state is State.RUNNING and seen.attempts == 2)
    first, second = stack.client.attempts(job.id)
    assert (first.state, first.reason) == ("failed", "preempted")
    assert first.checkpoint
    lines = poll(
        lambda: stack.client.logs(job.id, attempt=2, source="rank-0", limit=100).items,
        lambda found: any(line.message.startswith("Resuming at step") for line in found),
    )
    (line,) = [line.message for line in lines if line.message.startswith("Resuming at step")]
    assert stack.client.job(job.id).state is State.RUNNING
    assert second.number == 2
    return int(first.checkpoint.rpartition("/")[2]), int(line.split()[3])


def end(stack: Stack, job: JobView) -> None:
    stack.client.cancel(job.id)
    wait_state(stack, job.id, State.CANCELLED)
    poll(lambda: processes_of(stack, "RayTrainWorker"), lambda found: not found, 60)


@pytest.mark.parametrize("who", ["trainer.main", "RayTrainWorker"])
def test_on_sigterm_an_attempt_stores_a_checkpoint_and_the_next_one_resumes_there(stack, who):
    """To the driver, or to the last worker alone: the ranks agree."""
    job = training(stack, f"preempted-{who.partition('.')[0].lower()}")
    seen = job.progress.step
    processes_of(stack, who)[-1].send_signal(signal.SIGTERM)
    stored, begun = resumed(stack, job)
    assert stored == begun >= seen
    end(stack, job)


def test_stopped_through_ray_a_driver_does_not_wait_for_workers_that_are_deaf(stack):
    """Its only worker is suspended, as one that hangs, and can neither obey nor leave."""
    job = training(stack, "deaf", resources={"workers": 1})
    (worker,) = processes_of(stack, "RayTrainWorker")
    worker.suspend()
    ray = RayCluster(f"http://{HOST}:{stack.state.ports.ray_dashboard}", stack.folder.ray_token, sys.executable)
    try:
        ray.stop(f"{job.id}-a1")
    finally:
        ray.close()
    wait(stack, job.id, lambda seen: seen.attempts == 2)
    outcome = json.loads((artifacts(stack, job) / "attempts/1/outcome.json").read_text())
    assert (outcome["reason"], outcome["checkpoint"]) == ("preempted", None)
    lines = [line.message for line in stack.client.logs(job.id, attempt=1, source="driver", limit=1000).items]
    assert any("Stopped from outside (signal 2)" in line for line in lines)
    assert not any("the workers are to store a checkpoint" in line for line in lines)
    assert not worker.is_running()
    end(stack, job)

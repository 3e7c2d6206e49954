"""Processes killed under running jobs: nothing is lost, nothing runs twice."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from live import checkpoint_of, make_spec, members, poll, wait, wait_state

from service import stack as embedded
from service.jobs.schemas import JobView, State

if TYPE_CHECKING:
    from local_stack import Stack

pytestmark = pytest.mark.slow


def final_weights(stack: Stack, job: JobView) -> dict[str, bytes]:
    folder = checkpoint_of(stack, job)
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("student", "teacher", "optimizer")}


@pytest.fixture(scope="module")
def undisturbed(stack):
    job = stack.client.submit(make_spec(name="undisturbed"))
    return final_weights(stack, wait_state(stack, job.id, State.SUCCEEDED))


def running(stack: Stack, name: str, step: int = 25) -> JobView:
    """A job under way, past its first checkpoint."""
    job = stack.client.submit(make_spec(name=name, register_as=name))
    return wait(stack, job.id, lambda seen: seen.progress is not None and seen.progress.step > step)


def ends_well(stack: Stack, job: JobView, expected: dict[str, bytes], attempts: int) -> None:
    ended = wait_state(stack, job.id, State.SUCCEEDED, timeout_s=300)
    assert ended.attempts == attempts
    assert final_weights(stack, ended) == expected
    assert stack.client.backbone(job.name).versions == [1]
    states = [event.state for event in stack.client.events(job.id)]
    assert [state for state in states if state.terminal] == [State.SUCCEEDED]


def test_a_killed_worker_is_replaced_and_the_end_is_bit_identical(stack, undisturbed):
    job = running(stack, "killed-worker")
    workers = members(stack, "RayTrainWorker")
    assert len(workers) == 2
    workers[1].kill()
    recovering = wait(stack, job.id, lambda seen: seen.state is State.RECOVERING)
    assert recovering.reason == "worker_failed"
    ends_well(stack, job, undisturbed, attempts=2)
    lost, second = stack.client.attempts(job.id)
    assert (lost.state, lost.reason) == ("failed", "worker_failed")
    log = "\n".join(line.message for line in stack.client.logs(job.id, attempt=2, source="rank-0").items)
    assert "Resuming at step" in log
    assert second.checkpoint.startswith("checkpoints/a2/")


def test_a_killed_api_comes_back_and_the_job_goes_on(stack, undisturbed):
    job = running(stack, "killed-api")
    api = stack.state.parts["api"].pid
    os.kill(api, signal.SIGKILL)
    poll(lambda: embedded.status(stack.folder), lambda seen: seen.up and seen.parts[-1].pid != api, 120)
    ends_well(stack, job, undisturbed, attempts=1)


def test_a_killed_supervisor_and_api_are_taken_up_and_the_job_goes_on(stack, undisturbed):
    job = running(stack, "killed-supervisor")
    state = stack.state
    ray, mlflow = state.parts["ray"], state.parts["mlflow"]
    os.kill(state.supervisor.pid, signal.SIGKILL)
    os.kill(state.parts["api"].pid, signal.SIGKILL)
    poll(lambda: state.parts["api"].alive, lambda alive: not alive)
    embedded.up(stack.folder, None, print)
    after = stack.state
    assert (after.parts["ray"], after.parts["mlflow"]) == (ray, mlflow)
    ends_well(stack, job, undisturbed, attempts=1)


def test_a_killed_driver_is_replaced(stack, undisturbed):
    job = running(stack, "killed-driver")
    drivers = [
        process for process in members(stack, "trainer.main") if process.cmdline()[-2:] == ["-m", "trainer.main"]
    ]
    assert len(drivers) == 1
    drivers[0].kill()
    ends_well(stack, job, undisturbed, attempts=2)

"""The control plane under fire: its promises hold whichever of its processes are killed."""

from __future__ import annotations

import os
import signal
from random import Random

import pytest
from fault_evidence import ended_well
from fault_gates import Moment
from fault_strikes import all_up
from fault_table import TABLE
from fault_world import CPUS, END_SECONDS, World, small_spec
from live import make_spec, poll, wait_state

from service.embedded import processes
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.protocol.outcome import Reason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

JOBS, SLOTS, KILLS = 20, 2, 3


@pytest.fixture
def random(request) -> Random:
    return Random(f"{TABLE.seed} {request.node.name}")


def held_in_the_middle(world: World, name: str, step: int) -> JobView:
    """A job that waits at one of its steps."""
    moment = Moment("step", step)
    world.gates.close(name, moment)
    job = world.stack.client.submit(small_spec(name))
    world.gates.held(name, moment)
    return job


def test_pulling_the_plug_in_the_middle_of_three_jobs_loses_nothing(world, random):
    world.leave_undisturbed(1)
    jobs = [held_in_the_middle(world, f"unplugged-{number}", random.randint(2, 19)) for number in (1, 2, 3)]
    world.wait_for_undisturbed()
    supervisor, victims = world.stack.state.supervisor.pid, processes.members(world.stack.state.id)
    everything = [supervisor, *(process.pid for process in victims)]
    world.kill(*random.sample(everything, len(everything)))
    poll(lambda: processes.members(world.stack.state.id), lambda found: not found)
    for job in jobs:
        world.gates.open(job.name)
    up = world.stack.rcmae("up", "--detach", **world.environment)
    assert up.returncode == 0, up.stderr
    for job in jobs:
        ended = wait_state(world.stack, job.id, State.SUCCEEDED, timeout_s=END_SECONDS)
        assert ended.attempts == 2
        ended_well(world, ended, {Reason.CLUSTER_LOST})


def test_a_killed_supervisor_and_api_are_taken_up_and_the_job_goes_on(world, random):
    world.leave_undisturbed(1)
    job = held_in_the_middle(world, "unsupervised", random.randint(2, 19))
    world.wait_for_undisturbed()
    before = world.stack.state
    world.kill(before.supervisor.pid, before.parts["api"].pid)
    poll(lambda: before.parts["api"].alive, lambda alive: not alive)
    world.gates.open(job.name)
    up = world.stack.rcmae("up", "--detach", **world.environment)
    assert up.returncode == 0, up.stderr
    after = world.stack.state
    assert [after.parts[name] for name in ("ray", "mlflow")] == [before.parts[name] for name in ("ray", "mlflow")]
    ended = wait_state(world.stack, job.id, State.SUCCEEDED, timeout_s=END_SECONDS)
    assert ended.attempts == 1
    ended_well(world, ended, set())


def test_twenty_jobs_on_two_slots_start_by_priority_then_age_though_the_api_is_killed_three_times(world, random):
    client = world.stack.client
    with world.filled(CPUS - SLOTS):
        with world.filled(SLOTS):  # room for none of them, until all are there
            jobs = [client.submit(tiny(number, random.randint(-2, 2))) for number in range(JOBS)]
        for count in sorted(random.sample(range(1, JOBS - 2), KILLS)):
            poll(lambda: ended(world, jobs), lambda found, count=count: len(found) >= count, END_SECONDS)
            os.kill(world.stack.state.parts["api"].pid, signal.SIGKILL)
            all_up(world)
        poll(lambda: ended(world, jobs), lambda found: len(found) == JOBS, END_SECONDS)
    for job in jobs:
        events = world.events(job)
        assert [event.state for event in events if event.state.terminal] == [State.SUCCEEDED]
        assert client.job(job.id).attempts == 1
    promised = sorted(jobs, key=lambda job: (-job.priority, job.created_at))
    assert [job.name for job in sorted(jobs, key=lambda job: started(world, job))] == [job.name for job in promised]


def tiny(number: int, priority: int) -> dict[str, object]:
    """Five steps."""
    optimization, evaluation = {"epochs": 1, "global_batch_size": 320}, {"every_epochs": 1, "probes": []}
    name, resources = f"queued-{number}", {"workers": 1}
    return make_spec(
        name=name, priority=priority, resources=resources, optimization=optimization, evaluation=evaluation
    )


def ended(world: World, jobs: list[JobView]) -> list[str]:
    ours = {job.id for job in jobs}
    return [job.id for job in world.stack.client.jobs() if job.id in ours and job.state.terminal]


def started(world: World, job: JobView) -> object:
    """When its first attempt was submitted."""
    return next(event.time for event in world.events(job) if event.state is State.STARTING)

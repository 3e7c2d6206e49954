"""A job whose workers train together on two nodes, one of which is lost or taken away."""

from __future__ import annotations

import pytest
from fault_evidence import ended_well
from fault_gates import Moment
from fault_nodes import SECOND_HOST, kill_second_node, second_node
from fault_world import CPUS, END_SECONDS, small_spec
from live import poll, wait, wait_state

from service.jobs.state import State
from trainer.protocol.outcome import Reason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_lost_node_is_waited_for_and_the_end_is_bit_identical(world):
    name, moment = "lost-node", Moment("step", 8)
    world.leave_undisturbed(2)
    world.wait_for_undisturbed()
    with world.filled(CPUS - 1):
        with second_node(world.stack, 1, world.environment):
            world.gates.close(name, moment)
            job = world.stack.client.submit(small_spec(name, workers=2))
            world.gates.held(name, moment)
            kill_second_node(world.stack)
            world.gates.open(name)
            lost = wait(world.stack, job.id, lambda seen: seen.state is State.RECOVERING)
            assert lost.reason == "node_lost"
            waiting = wait(world.stack, job.id, lambda seen: "needs" in seen.message)
            assert (waiting.state, waiting.reason) == (State.RECOVERING, "node_lost")
            assert f"needs 2 CPUs, 1 free, {CPUS} in the cluster" in waiting.message
        with second_node(world.stack, 1, world.environment):
            ended = wait_state(world.stack, job.id, State.SUCCEEDED, timeout_s=END_SECONDS)
    told = "\n".join(event.message for event in world.events(ended))
    assert f"the node at {SECOND_HOST} was lost" in told
    assert ended.attempts == 2
    ended_well(world, ended, {Reason.NODE_LOST}, workers=2)


def test_a_node_that_is_taken_away_with_notice_costs_no_step(world):
    """SIGTERM to its `ray start`, as from a machine that shuts down: Ray drains the node, and the ranks leave it."""
    name, moment = "drained-node", Moment("step", 8)
    world.leave_undisturbed(2)
    world.wait_for_undisturbed()
    with world.filled(CPUS - 1):
        with second_node(world.stack, 1, world.environment, drain_s=60) as node:
            world.gates.close(name, moment)
            job = world.stack.client.submit(small_spec(name, workers=2))
            world.gates.held(name, moment)
            node.terminate()
            poll(
                lambda: world.stack.client.logs(job.id, limit=1000).items,
                lambda lines: any("about to be preempted: the node" in line.message for line in lines),
            )
            world.gates.open(name)
            wait(world.stack, job.id, lambda seen: seen.state is not State.RUNNING)
            node.wait()
        with second_node(world.stack, 1, world.environment):
            ended = wait_state(world.stack, job.id, State.SUCCEEDED, timeout_s=END_SECONDS)
    first = world.attempts(ended)[0]
    assert (first.reason, first.checkpoint) == ("preempted", "checkpoints/a1/00000008")
    ended_well(world, ended, {Reason.PREEMPTED}, workers=2)

"""What must be true of every job that outlived a fault, whatever the fault was."""

from __future__ import annotations

from collections.abc import Set
from itertools import pairwise

from fault_world import World

from service.jobs.lifecycle import POLICIES
from service.jobs.schemas import AttemptView, EventView, JobView
from service.jobs.state import State
from trainer.protocol.outcome import Reason

CHARGED = {True: "more failures are allowed", False: "not counted as a failure"}


def ended_well(world: World, job: JobView, reasons: Set[Reason], workers: int = 1) -> None:
    """It succeeded once, each attempt alone, from the last checkpoint on, to the end of an undisturbed job.

    ``reasons`` are those for which attempts may have ended.
    """
    attempts = world.attempts(job)
    _ended_once(world, job)
    _ended_for_good_reasons(world, job, attempts, reasons)
    _never_two_at_once(world, job, attempts)
    _went_on_from_the_last_manifest(world, job, attempts)
    assert world.stack.client.backbone(job.name).versions == [1]
    assert world.final(job) == world.undisturbed(workers)


def failed(attempts: list[AttemptView]) -> list[AttemptView]:
    """Those that ended by a fault."""
    return [attempt for attempt in attempts if attempt.state in {"failed", "lost"}]


def _ended_once(world: World, job: JobView) -> None:
    assert job.state is State.SUCCEEDED, job.message
    states = [event.state for event in world.events(job)]
    assert [state for state in states if state.terminal] == [State.SUCCEEDED]


def _ended_for_good_reasons(world: World, job: JobView, attempts: list[AttemptView], reasons: Set[Reason]) -> None:
    """Attempts end by the fault alone, and the budget is charged as the table of reasons says."""
    assert attempts[-1].state == "succeeded"
    for attempt in failed(attempts):
        assert attempt.reason in reasons, attempt.message
        told = ended_as(world, job, attempt)
        # Where the job was to pause, it has not lost anything: nobody pays for that.
        assert told.state is State.PAUSED or CHARGED[POLICIES[Reason(attempt.reason)].charged] in told.message


def ended_as(world: World, job: JobView, attempt: AttemptView) -> EventView:
    """What was told when an attempt had ended."""
    assert attempt.ended_at
    return next(event for event in world.events(job) if event.time >= attempt.ended_at)


def _never_two_at_once(world: World, job: JobView, attempts: list[AttemptView]) -> None:
    """By processes, by heartbeats, by manifests: an attempt begins when nothing of the one before lives."""
    assert world.gates.overlaps(job.name) == ""
    for before, after in pairwise(attempts):
        beat = world.last_heartbeat(job, before.number)
        assert beat is None or beat < after.started_at.timestamp(), (before, after)
    manifests = world.manifests(job)
    steps = [manifest.step for manifest in manifests]
    assert steps == sorted(set(steps)), manifests
    for attempt in attempts:
        late = [found for found in manifests if found.attempt < attempt.number and found.time > attempt.started_at]
        assert not late, (attempt, late)


def _went_on_from_the_last_manifest(world: World, job: JobView, attempts: list[AttemptView]) -> None:
    """Work is repeated back to the last committed checkpoint and no further."""
    manifests = world.manifests(job)
    for attempt in attempts:
        begun = world.begun_at(job, attempt.number)
        earlier = [manifest.step for manifest in manifests if manifest.attempt < attempt.number]
        if begun is not None or attempt is attempts[-1]:
            assert begun == max(earlier, default=0), (attempt, manifests)

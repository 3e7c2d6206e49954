"""Every fault in every phase of a job: nothing is lost, nothing runs twice, and the end is the same to the last bit.

One strike meets six jobs at once, each held in another phase by a gate. RCMAE_FAULT_SEED decides where in its phase
each is held, who is killed first, and for how long. Of RCMAE_SLOW_PART=2/4 each meets one or two of the six phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
from fault_evidence import CHARGED, ended_as, ended_well
from fault_gates import Moment
from fault_strikes import FAULTS, PHASES, Fault, Held, all_up, is_wanted
from fault_table import TABLE
from fault_world import END_SECONDS, FILES, STEPS_PER_EPOCH, World, small_spec
from live import poll

from service.adapters.mlflow_store import MlflowStore
from service.jobs.schemas import AttemptView, JobView
from service.jobs.state import State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = TABLE.seed


@dataclass
class Cell:
    """One job that one fault met in one phase."""

    phase: str
    name: str
    moments: Sequence[Moment]
    """Where it was held; the last is where it was struck."""
    workers: int
    job: JobView | None = None
    resumed: bool = field(default=False)
    """Whether it was paused and has been told to go on."""

    @property
    def id(self) -> str:
        assert self.job
        return self.job.id


def moments_of(phase: str, fault: Fault, random: Random) -> list[Moment]:
    """Where to hold a job: anywhere in its phase that the seed says."""
    step = random.randint(2, STEPS_PER_EPOCH)
    choices = {
        "starting": [[Moment("worker")], *([[Moment("driver")]] if fault.hits_driver else [])],
        "first checkpoint": [[Moment("step", step)]],
        "upload": [[Moment("commit", n)] for n in (1, 2, 3)]
        + [[Moment("file", FILES * n + random.randint(2, FILES))] for n in (0, 1, 2)],
        "evaluation": [[Moment(place, n)] for place in ("evaluate", "evaluate-done") for n in (2, 3)],
        "registration": [[Moment(place)] for place in ("publish", "version", "version-done", "publish-done")],
        "stopping": [
            [Moment("step", step), Moment("commit")],
            [Moment("step", STEPS_PER_EPOCH + step), Moment("commit", 2)],
            [Moment("step", STEPS_PER_EPOCH + step), Moment("outcome")],
            [Moment("step", STEPS_PER_EPOCH + step), Moment("outcome-done")],
        ],
    }
    return random.choice(choices[phase])


@pytest.fixture(scope="module", params=list(FAULTS), ids=[f"{name}-seed{SEED}" for name in FAULTS])
def struck(request, world) -> tuple[str, dict[str, Cell]]:
    """The jobs that one fault has met, all ended."""
    name, fault = request.param, FAULTS[request.param]
    random = Random(f"{SEED} {name}")
    cells = [
        Cell(phase, f"{name}-{phase}".lower().replace(" ", "-"), moments_of(phase, fault, random), workers=1)
        for phase in PHASES
    ]
    # Of a part each cell is held where it is in the whole table.
    cells = [cell for cell in cells if is_wanted(name, cell.phase)]
    if name == "worker":  # in some jobs the others of the group have to notice
        for cell in random.sample(cells, min(2, len(cells))):
            cell.workers = 2
    world.leave_undisturbed(*sorted({cell.workers for cell in cells}))
    with fault.around(world):
        held = hold(world, cells)
        world.wait_for_undisturbed()
        with fault.strike(world, held, random):
            for cell in random.sample(cells, len(cells)):
                world.gates.open(cell.name)
            poll(lambda: [settled(world, cell) for cell in cells], all, END_SECONDS)
        all_up(world)
    return name, {cell.phase: cell for cell in cells}


def hold(world: World, cells: Sequence[Cell]) -> list[Held]:
    """Submit the jobs and wait until each waits in its phase."""
    for cell in cells:
        world.gates.close(cell.name, cell.moments[0])
        cell.job = world.stack.client.submit(small_spec(cell.name, cell.workers))
    held = []
    for cell in cells:
        process = world.gates.held(cell.name, cell.moments[0])
        if len(cell.moments) > 1:
            pause(world, cell)
            world.gates.close(cell.name, cell.moments[1])
            process = world.gates.held(cell.name, cell.moments[1])
        held.append(Held(cell.name, process))
    return held


def pause(world: World, cell: Cell) -> None:
    """Tell a job to pause, and wait until its attempt knows."""
    job = world.stack.client.pause(cell.id)
    store = MlflowStore(world.mlflow.tracking_uri)
    poll(lambda: store.run(str(job.run_id)).observed(), bool)


def settled(world: World, cell: Cell) -> bool:
    """Whether a job has ended. One that was to be paused is told to go on when it is."""
    cell.job = world.stack.client.job(cell.id)
    if cell.job.state is State.PAUSED and not cell.resumed:
        cell.job, cell.resumed = world.stack.client.resume(cell.id), True
    return cell.job.state.terminal


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_outlives_a_fault(world, struck, phase):
    name, cells = struck
    fault, cell = FAULTS[name], cells[phase]
    attempts = world.attempts(cell.job)
    TABLE.note(name, phase, f"{outcome(world, cell.job, attempts)} (at {cell.moments[-1].place})")
    ended_well(world, cell.job, fault.reasons, cell.workers)
    assert cell.resumed == (phase == "stopping")
    if fault.ends_attempts:
        assert len(attempts) == 2


def outcome(world: World, job: JobView, attempts: list[AttemptView]) -> str:
    """For the table."""
    ends = [
        f"{attempt.reason or attempt.state}{', charged' * (CHARGED[True] in ended_as(world, job, attempt).message)}"
        for attempt in attempts[:-1]
    ]
    return f"{len(attempts)}: {'; '.join([*ends, job.state])}"

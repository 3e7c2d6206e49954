"""The faults: what is killed or cut off under running jobs, and how it comes back."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from random import Random

import psutil
from fault_nodes import kill_second_node, second_node
from fault_world import CPUS, World
from live import poll
from slow_parts import chosen

from service.embedded import processes
from service.embedded import stack as embedded
from trainer.protocol.outcome import Reason

OUTAGE_SECONDS = 60.0
UP_SECONDS = 120.0


@dataclass(frozen=True)
class Held:
    """A job that a fault is about to meet."""

    name: str
    process: int
    """The one that waits at the gate."""


Strike = Callable[[World, Sequence[Held], Random], AbstractContextManager[None]]
"""Entered, the harm is done; left, all parts are back. In between the jobs go on and end."""


@dataclass(frozen=True)
class Fault:
    strike: Strike
    reasons: frozenset[Reason]
    """Why an attempt may end by it; none where every attempt must live through it."""
    ends_attempts: bool
    """Whether it ends every attempt it meets."""
    around: Callable[[World], AbstractContextManager[None]] = lambda _: nullcontext()
    """What the jobs need before they are submitted."""
    hits_driver: bool = True
    """Whether it can meet a job that has no worker yet."""


@contextmanager
def _worker(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:
    for one in random.sample(held, len(held)):
        world.kill(random.choice(world.gates.workers(one.name)))
    _wait_until_gone(held)
    yield


@contextmanager
def _driver(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:
    for one in random.sample(held, len(held)):
        world.kill(*world.gates.drivers(one.name))
    _wait_until_gone(held)
    yield


@contextmanager
def _controller(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:  # noqa: ARG001 - a strike's form
    """Ray Train's own process between driver and workers."""
    found = [process for process in processes.members(world.stack.state.id, "ray") if _is_controller(process)]
    assert len(found) == len(held)
    world.kill(*(process.pid for process in found))
    _wait_until_gone(held)
    yield


def _is_controller(process: psutil.Process) -> bool:
    return " ".join(process.cmdline()).startswith("ray::TrainController")


@contextmanager
def _raylet(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:  # noqa: ARG001 - a strike's form
    kill_second_node(world.stack)
    _wait_until_gone(held)
    with second_node(world.stack, CPUS, world.environment):
        yield


@contextmanager
def _on_second_node(world: World) -> Iterator[None]:
    """Jobs find room on the second node alone; what fills the first one is not touched by what happens."""
    with world.filled(CPUS), second_node(world.stack, CPUS, world.environment):
        yield


@contextmanager
def _head(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:
    before = world.stack.state.parts["ray"]
    victims = [process for process in processes.members(world.stack.state.id, "ray") if _is_head(process, before.pid)]
    for process in random.choice([victims, victims[:1], victims[-1:]]):
        process.kill()
    _wait_until_gone(held)
    poll(lambda: world.stack.state.parts.get("ray"), lambda now: now not in {None, before}, UP_SECONDS)
    yield


def _is_head(process: psutil.Process, leader: int) -> bool:
    """Ray's own: what started it, its table of the cluster, its raylet."""
    return process.pid == leader or process.name() in {"gcs_server", "raylet"}


@contextmanager
def _api(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:  # noqa: ARG001 - a strike's form
    world.kill(world.stack.state.parts["api"].pid)
    time.sleep(random.uniform(0, 5))  # the jobs go on while it is away, or once it is back
    yield


@contextmanager
def _mlflow(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:  # noqa: ARG001 - a strike's form
    """It hangs, and then goes on or has died."""
    server = processes.members(world.stack.state.id, "mlflow")
    for process in server:
        process.suspend()
    end = random.choice([signal.SIGCONT, signal.SIGKILL])

    def back() -> None:
        for process in server:
            process.send_signal(end)

    timer = threading.Timer(OUTAGE_SECONDS, back)
    timer.start()
    try:
        time.sleep(random.uniform(0, 10))
        yield
    finally:
        timer.join()


@contextmanager
def _postgres(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:  # noqa: ARG001 - a strike's form
    """Ended in order or by force, and started again while the jobs go on."""
    random.choice([world.postgres.stop, world.postgres.kill])()
    timer = threading.Timer(random.uniform(1, 10), world.postgres.start)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@contextmanager
def _s3(world: World, held: Sequence[Held], random: Random) -> Iterator[None]:  # noqa: ARG001 - a strike's form
    with world.proxy.away(OUTAGE_SECONDS):
        time.sleep(random.uniform(0, 10))
        yield


FAULTS: dict[str, Fault] = {
    "worker": Fault(_worker, frozenset({Reason.WORKER_FAILED}), ends_attempts=True, hits_driver=False),
    "driver": Fault(_driver, frozenset({Reason.WORKER_FAILED, Reason.START_FAILED}), ends_attempts=True),
    "controller": Fault(_controller, frozenset({Reason.WORKER_FAILED}), ends_attempts=True, hits_driver=False),
    "second raylet": Fault(
        _raylet, frozenset({Reason.NODE_LOST}), ends_attempts=True, around=_on_second_node, hits_driver=False
    ),
    "Ray head": Fault(_head, frozenset({Reason.CLUSTER_LOST}), ends_attempts=True),
    "API": Fault(_api, frozenset(), ends_attempts=False),
    "Postgres": Fault(_postgres, frozenset(), ends_attempts=False),
    "MLflow away": Fault(_mlflow, frozenset({Reason.STORAGE_ERROR}), ends_attempts=False),
    "S3 away": Fault(_s3, frozenset({Reason.STORAGE_ERROR}), ends_attempts=False),
}
PHASES = ("starting", "first checkpoint", "upload", "evaluation", "registration", "stopping")


def is_wanted(name: str, phase: str) -> bool:
    """Whether a fault meets a job of this phase in the part of the slow tests that runs."""
    return chosen(list(FAULTS).index(name) + PHASES.index(phase))


def all_up(world: World) -> None:
    poll(lambda: embedded.status(world.stack.folder), lambda seen: seen.up, UP_SECONDS)


def _wait_until_gone(held: Sequence[Held]) -> None:
    """No attempt outlives what it was hit by: its gate is opened only when nobody waits there any more."""
    alive = {one.name: one.process for one in held}
    poll(lambda: {name for name, pid in alive.items() if _lives(pid)}, lambda found: not found, UP_SECONDS)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""Commands and heartbeat: how an attempt and the control plane speak to each other."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from typing import Literal, Protocol, TypeVar

import torch
import torch.distributed as dist

from trainer.logs import logger
from trainer.spec.job import Command

POLL_SECONDS = 2.0
HEARTBEAT_SECONDS = 5.0
PATIENCE = timedelta(hours=24)

T = TypeVar("T")
Action = Literal["cancel", "pause"]
ACTIONS: tuple[Action | None, ...] = (None, "pause", "cancel")
"""By weight: where two are wanted at once the later one wins."""


class Line(Protocol):
    """The attempt's line to the control plane: the MLflow run's tags and metrics."""

    def read_command(self) -> Command | None: ...

    def acknowledge(self, command: Command) -> None: ...

    def heartbeat(self) -> None: ...


class Control:
    """Listens for commands and shows life, on a thread of its own; rank 0 only."""

    def __init__(self, line: Line, attempt: int) -> None:
        self._line, self._attempt = line, attempt
        self._action: Action | None = None
        self._generation = 0
        self._last_beat, self._down = -math.inf, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        self._turn()  # it may have been told to end before it could listen
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=60)

    def wanted(self) -> Action | None:
        """What the service wants this attempt to do now."""
        return self._action

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._turn()

    def _turn(self) -> None:
        """Listen, and show life where it is time to."""
        try:
            self._listen()
            if time.monotonic() - self._last_beat >= HEARTBEAT_SECONDS:
                self._line.heartbeat()
                self._last_beat = time.monotonic()
            self._down = False
        except Exception as error:  # noqa: BLE001 - any failure of the line: training goes on without it
            if not self._down:
                logger.warning("MLflow cannot be reached; commands and heartbeat wait for it: %s", error)
            self._down = True

    def _listen(self) -> None:
        command = self._line.read_command()
        if command is None or command.attempt != self._attempt or command.generation <= self._generation:
            return
        self._action = command.action
        self._line.acknowledge(command)  # where it fails, the next poll reads the command again
        self._generation = command.generation
        logger.info("Told to %s; stopping at the next step", command.action)


class Agreement:
    """All ranks take the same action and the same checkpoints at the same step."""

    def __init__(self, world: int) -> None:
        # On the CPU beside the gradients' group: a GPU never has to be waited for to read the answer. Patient: the
        # other ranks wait here while the first looks at every image of a large dataset.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None

    def __call__(self, wanted: Action | None, due: bool) -> tuple[Action | None, bool]:
        """The heaviest action any rank wants, and whether any has a checkpoint due.

        Every rank calls this at the same step.
        """
        if self._group is None:
            return wanted, due
        weights = torch.tensor([ACTIONS.index(wanted), int(due)], dtype=torch.int32)
        dist.all_reduce(weights, op=dist.ReduceOp.MAX, group=self._group)
        weight, taken = weights.tolist()
        return ACTIONS[weight], bool(taken)

    def share(self, value: T | None) -> T:
        """Rank 0's value on every rank."""
        if self._group is None:
            box: list[T | None] = [value]
        else:
            box = [value]
            dist.broadcast_object_list(box, src=0, group=self._group)
        shared = box[0]
        if shared is None:
            raise ValueError("rank 0 has nothing to share")
        return shared

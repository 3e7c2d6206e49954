"""Commands and heartbeat: how an attempt and the control plane speak. Without torch: drivers listen too."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

from trainer.logger import logger
from trainer.protocol.command import Action, Command

POLL_SECONDS = 2.0
HEARTBEAT_SECONDS = 5.0


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

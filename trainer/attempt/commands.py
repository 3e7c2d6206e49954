"""An attempt's commands and heartbeat. Without torch: the driver of a search listens for commands too."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

from trainer.logger import logger
from trainer.protocol.command import Action, Command
from trainer.protocol.progress import Activity
from trainer.tracking.activity import ActivityTracker

POLL_SECONDS = 2.0
HEARTBEAT_SECONDS = 5.0


class CommandChannel(Protocol):
    """The attempt's channel to the service: tags and metrics of its MLflow run."""

    def read_command(self) -> Command | None:
        """The newest command; None if there is none."""

    def acknowledge(self, command: Command) -> None:
        """Tell the service that the attempt has received a command."""

    def heartbeat(self, activity: Activity | None) -> None:
        """Tell the service that the attempt is alive, and what it is doing, if that is known."""


class CommandListener:
    """Polls for commands and sends heartbeats from a thread of its own; rank 0 only."""

    def __init__(self, channel: CommandChannel, attempt: int, reports_as: int | None = None) -> None:
        """``attempt`` is the one that commands are for, ``reports_as`` the one that heartbeats are of, if another."""
        self._channel, self._attempt, self._reports_as = channel, attempt, reports_as or attempt
        self.tracker = ActivityTracker()
        """What the heartbeats say that the attempt is doing."""
        self._action: Action | None = None
        self._generation = 0
        self._last_heartbeat, self._down = -math.inf, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    def start(self) -> None:
        self._poll()  # a command may have been sent before the attempt could listen
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=60)

    def requested_action(self) -> Action | None:
        """The newest command that the service has sent to this attempt; None if there is none."""
        return self._action

    def activity(self) -> Activity | None:
        """What the attempt is doing; None if that is not known yet."""
        return self.tracker.activity(self._reports_as)

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._poll()

    def _poll(self) -> None:
        """Read the command, and send a heartbeat if one is due."""
        try:
            self._read_command()
            if time.monotonic() - self._last_heartbeat >= HEARTBEAT_SECONDS:
                self._channel.heartbeat(self.activity())
                self._last_heartbeat = time.monotonic()
            self._down = False
        except Exception as error:  # noqa: BLE001 - training goes on without the channel, whatever its error
            if not self._down:
                logger.warning("MLflow is unreachable; commands and heartbeats wait until it is back: %s", error)
            self._down = True

    def _read_command(self) -> None:
        command = self._channel.read_command()
        if command is None or command.attempt != self._attempt or command.generation <= self._generation:
            return
        self._action = command.action
        self._channel.acknowledge(command)  # if this fails, the next poll reads the command again
        self._generation = command.generation
        logger.info("Received the command to %s; stopping at the next step", command.action)

"""The process that starts the parts of an embedded stack, watches them and starts again those that die.

`python -m service.embedded.supervisor --state-dir DIR [--port N] [--artifact-root R]`, started by `rcmae up`, which
passes a database's URL in the environment. On SIGTERM, or when its folder is moved or removed, it ends everything and
then itself. Killed without warning, it leaves the parts running: the next one adopts them.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from service.embedded import locations, parts, processes, relocation
from service.embedded.folder import FAILED_FILE, PARTS, Folder, FolderMoved, PartName, StackError, StackState
from service.embedded.processes import Identity
from service.embedded.stack import stop_parts

LOOK_S = 0.2
LONGEST_PAUSE_S = 30.0
STEADY_S = 30.0
"""A part that has worked this long has started successfully."""
STARTS_AT_FIRST = 3
"""A part that has never worked is started this often before the supervisor gives up."""
LOG_LIMIT = 16 * 2**20
LOCK_TRIES = 20
LONGEST_LOOK_S = 10.0
"""What one look adds to the silence of a part, at most: this process may be suspended during a look."""


class Patience(NamedTuple):
    """How long a part may live without answering. What counts is the time of the supervisor's own looks in a row: it
    makes none while the machine sleeps.
    """

    look_s: float = 5.0
    """From one look at a part that works to the next."""
    silent_s: float = 120.0
    """After this, a part that has worked since its start is started again."""
    starting_look_s: float = 0.2
    """From one look at a part that starts to the next."""
    starting_s: float = 600.0
    """After this, a part that has not worked since its start is started again."""


PATIENCE = Patience()


@dataclass
class Watch:
    """What the supervisor remembers about one part."""

    process: subprocess.Popen[bytes] | None = None
    """Only for a part that this supervisor started itself."""
    failures: int = 0
    """How often in a row it has ended without working steadily in between."""
    has_worked: bool = False
    works_since: float | None = None
    next_start: float = 0.0
    look: Future[bool] | None = None
    """Whether it answers, asked on another thread: a part that hangs does not hold up the others."""
    looked_at: float = -math.inf
    """When that look, or the last one, began."""
    silent_s: float = 0.0
    """The time of all looks since the last answer."""


class Supervisor:
    """Keeps the parts of one state folder running."""

    def __init__(
        self, folder: Folder, state: StackState, api_port: int | None = None, patience: Patience = PATIENCE
    ) -> None:
        """``api_port`` is the API's port if the user named one: the API then never moves to another."""
        self._folder, self._state, self._api_port, self._patience = folder, state, api_port, patience
        self._watches = {part: Watch() for part in PARTS}
        self._lookers = ThreadPoolExecutor(len(PARTS), thread_name_prefix="look")
        self._stop = threading.Event()

    @property
    def state(self) -> StackState:
        """What runs, as recorded."""
        return self._state

    def ask_to_stop(self, *_: object) -> None:
        """A signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Until asked to stop; raises `StackError` for a part that does not start, `FolderMoved` without its folder."""
        self._record(supervisor=Identity.of(os.getpid()))
        for part in PARTS:
            identity = self._state.parts.get(part)
            if identity and identity.alive:
                _say(f"{part}: adopted process {identity.pid}")
        while not self._stop.is_set():
            if not self._folder.is_home_of(self._state):
                raise FolderMoved(f"the state folder is no longer at {self._folder.path}: everything that used it ends")
            for part in PARTS:
                self._look_after(part)
            self._stop.wait(LOOK_S)

    def _look_after(self, part: PartName) -> None:
        watch, identity = self._watches[part], self._state.parts.get(part)
        if watch.process is not None:
            watch.process.poll()  # reaps it once it has ended
        if identity is not None and identity.alive:
            self._note_health(part, watch, identity)
        elif identity is not None:
            self._note_death(part, watch, identity)
        elif time.monotonic() >= watch.next_start:
            self._start(part, watch)

    def _note_health(self, part: PartName, watch: Watch, identity: Identity) -> None:
        now, starting, patience = time.monotonic(), watch.works_since is None, self._patience
        interval_s = patience.starting_look_s if starting else patience.look_s
        if watch.look is None:
            if now - watch.looked_at >= interval_s:
                watch.looked_at = now
                watch.look = self._lookers.submit(parts.works if starting else parts.answers, part, self._state)
            return
        if not watch.look.done():
            return
        answered, watch.look = watch.look.result(), None
        if not answered:
            watch.silent_s += max(interval_s, min(now - watch.looked_at, LONGEST_LOOK_S))
            if watch.silent_s >= (patience.starting_s if starting else patience.silent_s):
                self._end_hung(part, watch, identity)
            return
        watch.silent_s = 0.0
        if watch.works_since is None:
            watch.has_worked, watch.works_since = True, now
            _say(f"{part}: works")
        elif now - watch.works_since > STEADY_S:
            watch.failures = 0

    def _end_hung(self, part: PartName, watch: Watch, identity: Identity) -> None:
        """End a part that does not answer; what follows is the same as for one that has died."""
        _say(f"{part}: process {identity.pid} runs but has not answered for {watch.silent_s:.0f} s, and is ended")
        watch.silent_s = 0.0  # SIGKILL may take effect late, as with a disk that hangs
        processes.kill(processes.members(self._state.id, part))

    def _note_death(self, part: PartName, watch: Watch, identity: Identity) -> None:
        watch.failures += 1
        status = watch.process.poll() if watch.process else "unknown"
        log = self._folder.log_of(part)
        _say(f"{part}: process {identity.pid} ended with status {status}; its log: {log}")
        if not watch.has_worked and watch.failures >= STARTS_AT_FIRST:
            raise StackError(f"{part} did not start, {watch.failures} times in a row. The end of {log}:\n{_tail(log)}")
        pause = min(LONGEST_PAUSE_S, 0.25 * 2 ** (watch.failures - 1))
        watch.process, watch.works_since, watch.next_start = None, None, time.monotonic() + pause
        watch.look, watch.looked_at, watch.silent_s = None, -math.inf, 0.0
        restarts = self._state.restarts | {part: self._state.restarts.get(part, 0) + 1}
        self._record(parts={name: who for name, who in self._state.parts.items() if name != part}, restarts=restarts)

    def _start(self, part: PartName, watch: Watch) -> None:
        left = processes.sweep(self._state.id, part)
        if left:
            _say(f"{part}: ended {left} processes left from before")
        if part == "api" and self._api_port is None:
            self._move_api()
        log = self._folder.log_of(part)
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".old.log"))
        with log.open("ab") as output:
            watch.process = subprocess.Popen(
                parts.command(part, self._folder, self._state),
                env=parts.environment(part, self._folder, self._state),
                cwd=self._folder.path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # it survives the supervisor, and is stopped as a group
            )
        self._record(parts=self._state.parts | {part: Identity.of(watch.process.pid)})
        _say(f"{part}: started process {watch.process.pid}")

    def _move_api(self) -> None:
        moved = parts.move_api(self._state)
        if moved is not self._state:
            _say(f"api: port {parts.ports_of(self._state).api} is in use, {parts.ports_of(moved).api} is taken instead")
            self._record(ports=moved.ports)

    def _record(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)
        self._folder.save(self._state)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _say(text: str) -> None:
    """A line of the supervisor's log."""
    sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
    sys.stdout.flush()


def main() -> int:
    """Supervise until a signal to stop."""
    parser = argparse.ArgumentParser(prog="python -m service.embedded.supervisor")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--artifact-root")
    arguments = parser.parse_args()
    os.umask(0o077)  # for whatever this and every part of the stack writes, wherever that is
    folder = Folder.at(arguments.state_dir)
    for _ in range(LOCK_TRIES):  # whoever checks for a supervisor holds the lock for a moment
        with folder.lock() as mine:
            if mine:
                return _supervise(folder, arguments.port, arguments.artifact_root)
        time.sleep(processes.POLL_S)
    _say("another supervisor has this state folder")
    return 0


def _supervise(folder: Folder, port: int | None, artifact_root: str | None) -> int:
    """Run a supervisor with the lock held. An unexpected error leaves the parts running, for the next one to adopt."""
    try:
        root = locations.choose_artifact_root(folder, artifact_root)
        database_url = locations.choose_database_url(folder, os.environ.get(parts.DATABASE_VARIABLE))
        chosen = {"artifact_root": root, "database_url": database_url}
        state = parts.prepare(folder.load().model_copy(update=chosen), port)
        folder.save(state)
        if moved := relocation.relocate(folder):
            _say(f"the artifacts were in {moved.before}: {moved.rows} records now name {moved.now}")
    except StackError as error:
        return _give_up(folder, error)
    supervisor = Supervisor(folder, state, port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.ask_to_stop)
    try:
        supervisor.run()
    except FolderMoved as error:
        _say(str(error))
        stop_parts(folder, supervisor.state)
        return 1
    except StackError as error:
        stop_parts(folder, supervisor.state)
        return _give_up(folder, error)
    _say("stopping")
    stop_parts(folder, supervisor.state)
    return 0


def _give_up(folder: Folder, error: StackError) -> int:
    _say(str(error))
    (folder.path / FAILED_FILE).write_text(str(error))
    return 1


if __name__ == "__main__":
    sys.exit(main())

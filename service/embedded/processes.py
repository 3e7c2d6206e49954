"""Processes of an embedded stack: identifying them, finding all of them, ending them.

A number alone does not identify a process, since the kernel reuses numbers: its start time is needed too. Whatever a
stack starts carries the stack's id in its environment, so it is found even if its parents have ended.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

STACK_VARIABLE = "RCMAE_STACK"
"""Environment variable with the stack's id; whatever a part starts inherits it."""
PART_VARIABLE = "RCMAE_PART"
"""Environment variable with the part's name."""

POLL_S = 0.1
_SWEEPS = 10
_PORTS = range(15000, 32000)
"""Below Linux's range for outgoing connections, so that a part that restarts finds its port still free."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Identity(BaseModel):
    """One process, told apart from any later one with the same number."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: str
    """The machine's boot and the clock ticks from it to the process's start: setting the clock does not change it."""

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Of a process that exists (a zombie does); raises `ProcessLookupError`."""
        current = _look_up(pid)
        if current is None:
            raise ProcessLookupError(f"there is no process {pid}")
        return cls(pid=pid, started=current[1])

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        current = _look_up(self.pid)
        return current is not None and current[0] not in "ZX" and current[1] == self.started


def _look_up(pid: int) -> tuple[str, str] | None:
    """The kernel's letter for the state of the process that has this number now, and when it started."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the command's name may contain anything
    return state, f"{_BOOT.read_text().strip()}:{fields[18]}"


def members(stack: str, part: str | None = None) -> list[psutil.Process]:
    """Every living process of a stack or of one part of it, whoever its parent is now.

    These are the processes that carry the stack's id in their environment, and all others in the same sessions: Ray's
    processes overwrite their environment when they set their title, but share a session with one that does not.
    """
    sessions: dict[int, list[psutil.Process]] = {}
    marked: set[int] = set()
    for process in psutil.process_iter():
        try:
            session = os.getsid(process.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
        except ProcessLookupError:
            continue
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:  # another user's: not ours
            continue
        sessions.setdefault(session, []).append(process)
        if environment.get(STACK_VARIABLE) == stack and part in {None, environment.get(PART_VARIABLE)}:
            marked.add(session)
    return [process for session in marked for process in sessions[session] if process.pid != os.getpid()]


def outside(processes: Iterable[psutil.Process], group: int) -> list[psutil.Process]:
    """The processes that are not in a process group. Among Ray's, these are the drivers and workers of jobs."""
    others = []
    for process in processes:
        try:
            if os.getpgid(process.pid) != group:
                others.append(process)
        except ProcessLookupError:
            continue
    return others


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL each, and wait until they are gone."""
    processes = list(processes)
    for process in processes:
        try:
            process.kill()  # psutil checks the start time first
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)


def stop_group(leader: Identity, patience_s: float) -> None:
    """End a process group by its leader: SIGTERM, and SIGKILL to what is left after ``patience_s`` seconds."""
    if not leader.alive:
        return
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(leader.pid, number)
        except ProcessLookupError:
            return
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if not _group_alive(leader.pid):
                return
            time.sleep(POLL_S)


def _group_alive(group: int) -> bool:
    """Whether a process group has a living member; collects the ended leader if it is our child."""
    with suppress(ChildProcessError):  # adopted, or a Popen has collected it
        os.waitpid(group, os.WNOHANG)
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return False


def sweep(stack: str, part: str | None = None) -> int:
    """SIGKILL whatever is left of a stack or of one part, until nothing is; returns how many processes were killed."""
    count = 0
    for _ in range(_SWEEPS):
        left = members(stack, part)
        if not left:
            return count
        count += len(left)
        kill(left)
    raise RuntimeError(f"processes that do not end on SIGKILL: {', '.join(str(process.pid) for process in left)}")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on a port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listens(leader: Identity, port: int) -> bool:
    """Whether a process or another one in its session listens on a TCP port."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr[1:] == (port,):
            try:
                if os.getsid(connection.pid) == leader.pid:
                    return True
            except ProcessLookupError:
                continue
    return False


def free_ports(count: int) -> list[int]:
    """Different ports that nothing on 127.0.0.1 uses now."""
    ports: list[int] = []
    with ExitStack() as probes:  # all stay open until the last is found, so that the ports differ
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = probes.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1")

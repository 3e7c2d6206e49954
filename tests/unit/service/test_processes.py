"""Finding and ending a stack's processes, with real ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import pytest

from service.embedded import processes
from service.embedded.processes import Identity

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def stack():
    """An id; whatever carries it is ended afterwards."""
    made = uuid.uuid4().hex
    yield made
    processes.sweep(made)


def start(stack: str, program: str = SLEEP, part: str = "ray") -> subprocess.Popen[bytes]:
    """A part in its own session; waits for the line that its program prints, if it prints any."""
    environment = {**os.environ, processes.STACK_VARIABLE: stack, processes.PART_VARIABLE: part}
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, start_new_session=True, stdout=subprocess.PIPE
    )


def printed_number(process: subprocess.Popen[bytes]) -> int:
    """The number that a program printed."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_identity_lives_as_long_as_its_process(stack):
    process = start(stack)
    identity = Identity.of(process.pid)
    assert identity.alive
    process.kill()
    until(lambda: not identity.alive)  # already as a zombie
    process.wait()
    assert not identity.alive
    with pytest.raises(ProcessLookupError):
        Identity.of(process.pid)


def test_a_number_used_again_is_another_process(stack):
    process = start(stack)
    earlier = Identity(pid=process.pid, started="another-boot:1")
    assert not earlier.alive
    processes.stop_group(earlier, patience_s=1)
    assert process.poll() is None


def test_members_are_found_whoever_their_parent_is(stack):
    """A child in the same session that hides its environment, and one in a session of its own whose parent has died."""
    program = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
hidden = subprocess.Popen(sleep, env={})
subprocess.Popen(["/bin/sh", "-c", "setsid sleep 600 & echo $!"]).wait()
print(hidden.pid, flush=True)
time.sleep(600)
"""
    process = start(stack, program)
    detached, hidden = printed_number(process), printed_number(process)
    until(lambda: {process.pid, hidden} <= {member.pid for member in processes.members(stack)})
    found = {member.pid for member in processes.members(stack, "ray")}
    assert len(found) >= 3
    assert os.getsid(hidden) == process.pid
    assert processes.members(stack, "mlflow") == []
    assert processes.members(uuid.uuid4().hex) == []
    until(lambda: os.getpgid(detached) == detached)
    apart = {member.pid for member in processes.outside(processes.members(stack), process.pid)}
    assert detached in apart
    assert not {process.pid, hidden} & apart
    assert processes.sweep(stack) >= 3
    process.wait()
    assert processes.members(stack) == []
    assert processes.sweep(stack) == 0


def test_a_group_is_asked_and_then_killed(stack):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    willing, deaf = start(stack), start(stack, stubborn)
    printed_number(deaf)
    processes.stop_group(Identity.of(willing.pid), patience_s=30)
    processes.stop_group(Identity.of(deaf.pid), patience_s=0.2)
    assert processes.members(stack) == []


def test_a_part_that_ended_is_not_waited_for(stack):
    process = start(stack)
    identity = Identity.of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    processes.stop_group(identity, patience_s=600)


def test_ports_are_free_and_different():
    ports = processes.free_ports(20)
    assert len(set(ports)) == 20
    assert all(processes.port_is_free(port) for port in ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert not processes.port_is_free(ports[0])

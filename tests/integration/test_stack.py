"""The embedded stack with real Ray, MLflow and API: up, down, and what happens when something dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import psutil
import pytest
from live import artifacts, make_spec, wait_state
from local_stack import Stack, rcmae, running_stack
from postgres_server import PASSWORD

from service.client.server import HOST
from service.embedded import processes
from service.embedded.folder import PARTS, Folder
from service.embedded.parts import reasons_not_ready, works
from service.jobs.state import State

LIMIT_S = 120.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def all_works(stack: Stack) -> bool:
    return all(works(part, stack.state) for part in PARTS) and not reasons_not_ready(stack.state)


def test_up_twice_says_so(stack):
    before = stack.state
    again = stack.rcmae("up")
    assert again.returncode == 0, again.stderr
    assert f"already up at {stack.url}" in again.stdout
    assert stack.state == before
    other = stack.rcmae("up", "--detach", "--port", "1")
    assert other.returncode == 1
    assert "rcmae down" in other.stderr


def test_status_and_doctor_look_at_every_part(stack):
    shown = stack.rcmae("status", "--json")
    found = json.loads(shown.stdout)
    assert shown.returncode == 0
    assert found["up"] is True
    assert found["url"] == stack.url
    assert {part["name"]: part["pid"] for part in found["parts"]} == {
        name: identity.pid for name, identity in stack.state.parts.items()
    }
    assert found["database"] == f"sqlite:///{stack.state_dir}/rcmae.db"
    examined = stack.rcmae("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(examined.stdout)}
    assert examined.returncode == 0, [check for check in checks.values() if check["level"] == "broken"]
    assert all(checks[part]["level"] == "fine" for part in PARTS)
    assert checks["ray"]["found"].startswith("works")


def test_everything_listens_on_this_machine_alone(stack):
    listening = set()
    for process in processes.members(stack.state.id):
        with suppress(psutil.NoSuchProcess):  # Ray's idle workers come and go
            found = [each for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
            listening |= {each.laddr.ip.removeprefix("::ffff:") for each in found}
    assert listening == {HOST}


def test_nobody_else_can_read_what_a_stack_writes(stack, finished):
    job, _ = finished
    assert any(artifacts(stack, job).rglob("*.safetensors"))
    for path in (stack.state_dir, *stack.state_dir.rglob("*")):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_nobody_else_can_use_mlflow(stack):
    address = f"http://{HOST}:{stack.state.ports.mlflow}"
    for path in ("/", "/version", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/ajax-api/2.0/mlflow/runs/get"):
        refused = httpx.get(address + path)
        assert (refused.status_code, refused.headers["WWW-Authenticate"].split()[0]) == (401, "Basic"), path
    assert httpx.get(address, auth=("rcmae", "wrong")).status_code == 401
    assert "<title>MLflow</title>" in httpx.get(stack.mlflow_url).text, "a browser asks for user and password"


def test_nobody_else_can_use_ray(stack):
    ray = f"http://{HOST}:{stack.state.ports.ray_dashboard}/api/jobs/"
    assert httpx.get(ray).status_code == 401
    assert httpx.get(ray, headers={"Authorization": "Bearer wrong"}).status_code == 403
    assert stat.S_IMODE(stack.state.temp_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize("part", ["api", "mlflow"])
def test_a_part_that_is_killed_comes_back_where_it_was(stack, part):
    before = stack.state
    os.kill(before.parts[part].pid, signal.SIGKILL)
    until(lambda: stack.state.parts.get(part) not in {None, before.parts[part]} and all_works(stack))
    after = stack.state
    assert after.ports == before.ports
    assert after.supervisor == before.supervisor
    assert after.restarts.get(part, 0) == before.restarts.get(part, 0) + 1
    assert {name: who for name, who in after.parts.items() if name != part} == {
        name: who for name, who in before.parts.items() if name != part
    }
    assert stack.client.ready()


def test_up_adopts_what_a_killed_supervisor_left(stack):
    before = stack.state
    os.kill(before.supervisor.pid, signal.SIGKILL)
    os.kill(before.parts["api"].pid, signal.SIGKILL)
    until(lambda: not before.supervisor.alive and not before.parts["api"].alive)
    shown = stack.rcmae("status")
    assert shown.returncode == 1
    assert "the supervisor has ended" in shown.stdout
    examined = stack.rcmae("doctor")
    assert examined.returncode == 1
    assert "rcmae up" in examined.stdout

    adopted = stack.rcmae("up", "--detach")
    assert adopted.returncode == 0, adopted.stderr
    after = stack.state
    assert after.parts["ray"] == before.parts["ray"]
    assert after.parts["mlflow"] == before.parts["mlflow"]
    assert after.parts["api"] != before.parts["api"]
    assert after.supervisor != before.supervisor
    assert after.ports == before.ports
    assert after.temp_dir == before.temp_dir
    assert all_works(stack)
    # What was adopted is watched like the rest.
    os.kill(after.parts["mlflow"].pid, signal.SIGKILL)
    until(lambda: stack.state.parts.get("mlflow") not in {None, after.parts["mlflow"]} and all_works(stack))


def test_a_ray_that_is_killed_comes_back_without_its_remains(stack):
    before = stack.state
    remains = {process.pid for process in processes.members(before.id, "ray")}
    os.kill(before.parts["ray"].pid, signal.SIGKILL)
    until(lambda: stack.state.parts.get("ray") not in {None, before.parts["ray"]} and all_works(stack))
    assert stack.state.ports == before.ports
    assert not remains & {process.pid for process in processes.members(before.id)}


def test_a_stack_beside_another_and_down_leaves_nothing_of_it(stack, tmp_path):
    before = stack.state
    state_dir = tmp_path / "second"
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = rcmae(state_dir, "up", "--detach", "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port} of {HOST} is in use" in refused.stderr
    assert Folder(state_dir).load().parts == {}

    try:
        up = rcmae(state_dir, "up", "--detach", "--port", str(port), "--json")
        assert up.returncode == 0, up.stderr
        second = json.loads(up.stdout)
        assert second["url"] == f"http://{HOST}:{port}"
        state = Folder(state_dir).load()
        assert not set(state.ports.model_dump().values()) & set(before.ports.model_dump().values())
        assert processes.members(state.id)
        # The first stack's token means nothing here.
        assert httpx.get(f"{second['url']}/v1/jobs", headers=_bearer(stack.token)).status_code == 401
        assert httpx.get(f"{second['url']}/v1/jobs", headers=_bearer(_read(state_dir / "token"))).status_code == 200
    finally:
        down = rcmae(state_dir, "down")
    assert (down.returncode, down.stdout) == (0, "down\n")
    assert processes.members(state.id) == []
    assert not state.temp_dir.exists()
    assert not any(str(state_dir) in " ".join(_command(process)) for process in psutil.process_iter())
    assert rcmae(state_dir, "status").returncode == 1
    assert rcmae(state_dir, "down").stdout.startswith("nothing runs")

    assert stack.state == before
    assert all_works(stack)


@pytest.mark.slow
def test_a_port_that_is_taken_while_the_api_starts_is_left_to_the_other(tmp_path):
    """As by a second stack that starts at the same moment, and whose API answers like our own."""
    folder = Folder(tmp_path / "crowded")
    command = [sys.executable, "-m", "service.cli", "up", "--detach", "--state-dir", str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        try:
            until(lambda: folder.load().ports is not None)
            first = folder.load().ports.api
            with HTTPServer((HOST, first), Answering) as other:
                Thread(target=other.serve_forever, daemon=True).start()
                told, errors = up.communicate(timeout=LIMIT_S)
                other.shutdown()
            assert up.returncode == 0, errors
            state = folder.load()
            assert state.ports.api != first
            assert f"up at {state.url}" in told
            assert httpx.get(f"{state.url}/v1/jobs", headers=_bearer(_read(folder.token))).status_code == 200
        finally:
            rcmae(folder.path, "down")


class Answering(BaseHTTPRequestHandler):
    """Another program's server, which says 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.slow
def test_a_part_that_cannot_start_ends_the_start_with_its_log(tmp_path):
    state_dir = tmp_path / "broken"
    failed = rcmae(state_dir, "up", "--detach", RCMAE_POLL_INTERVAL_S="-1")
    assert failed.returncode == 1
    assert "api did not start" in failed.stderr
    assert "poll_interval_s" in failed.stderr
    state = Folder(state_dir).load()
    assert state.parts == {}
    assert state.temp_dir is None
    assert processes.members(state.id) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_ends_everything(tmp_path, number):
    # A shell ignores SIGINT for what it runs in the background, these tests perhaps, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Folder(tmp_path / "foreground")
    command = [sys.executable, "-m", "service.cli", "up", "--state-dir", str(folder.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        told = next(line for line in process.stderr if "stops everything" in line or process.poll() is not None)
        assert "Ctrl-C" in told
        state = folder.load()
        assert len(processes.members(state.id)) > len(PARTS)
        process.send_signal(number)
        assert process.wait(timeout=LIMIT_S) == 0
    assert processes.members(state.id) == []
    assert not state.temp_dir.exists()


@pytest.mark.slow
def test_a_stack_with_its_jobs_in_postgres_survives_its_restart(tmp_path, postgres):
    url = postgres.url("stack")
    state_dir = tmp_path / "state"
    refused = rcmae(state_dir, "up", "--detach", "--database-url", url.replace(PASSWORD, "wrong"))
    assert refused.returncode == 1
    assert "the database cannot be used: " in refused.stderr
    assert "password authentication failed" in refused.stderr
    with running_stack(state_dir, "--database-url", url) as stack:
        before = stack.state
        for command in ("status", "doctor"):
            shown = stack.rcmae(command, "--json")
            assert shown.returncode == 0, shown.stdout
            assert url.replace(PASSWORD, "***") in shown.stdout
            assert PASSWORD not in shown.stdout
        other = stack.rcmae("up", "--detach", "--database-url", postgres.url("other"))
        assert other.returncode == 1
        assert "keeps its jobs in" in other.stderr
        assert PASSWORD not in other.stderr

        job = stack.client.submit(make_spec(optimization={"epochs": 40}))
        wait_state(stack, job.id, State.RUNNING)
        postgres.stop()
        until(lambda: not all_works(stack))
        postgres.start()
        wait_state(stack, job.id, State.SUCCEEDED)
        assert stack.client.job(job.id).attempts == 1
        assert stack.state.parts == before.parts, "nothing had to be started again"

        stack.rcmae("down")
        again = stack.rcmae("up", "--detach")
        assert again.returncode == 0, again.stderr
        assert url.replace(PASSWORD, "***") in again.stdout
        token = {"Authorization": f"Bearer {stack.token}"}
        found = httpx.get(f"{stack.state.url}/v1/jobs/{job.id}", headers=token)
        assert found.json()["state"] == "succeeded"
    assert not (state_dir / "rcmae.db").exists()
    for file in state_dir.rglob("*"):
        if file.is_file() and file.name != "stack.json":
            assert PASSWORD.encode() not in file.read_bytes(), file


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _read(path: Path) -> str:
    return path.read_text().strip()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []

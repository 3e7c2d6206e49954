"""Parts that live but do not answer: the real supervisor with small servers for parts."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live import poll
from typer.testing import CliRunner

from service.cli import app
from service.embedded import doctor, parts, stack
from service.embedded.folder import PARTS, Folder
from service.embedded.processes import Identity
from service.embedded.supervisor import Patience, Supervisor

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Answering(BaseHTTPRequestHandler):
    def do_GET(self):
        ready = self.path != "/readyz"
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"" if ready else b'{"status": "not ready", "reasons": ["Ray: no answer for 3 s"]}')

HTTPServer(("127.0.0.1", int(sys.argv[1])), Answering).serve_forever()
"""
"""A part that answers until it is stopped: the kernel then still accepts its connections."""


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder.at(tmp_path / "state")
    made.make()
    return made


@contextmanager
def supervised(folder: Folder, patience: Patience) -> Iterator[Folder]:
    """A supervisor in this process with its parts; they are ended afterwards."""
    state = parts.prepare(folder.load(), None)
    folder.save(state)
    supervisor = Supervisor(folder, state, patience=patience)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        poll(folder.load, lambda state: set(state.parts) == set(PARTS))
        yield folder
    finally:
        supervisor.ask_to_stop()
        thread.join()
        stack.stop_parts(folder, supervisor.state)


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(
        parts, "command", lambda part, _, state: [sys.executable, "-c", SERVER, str(parts.port_of(part, state))]
    )
    monkeypatch.setattr(parts, "ANSWER_S", 0.2)


def test_what_parts_write_is_for_their_owner_alone(folder, tmp_path):
    """The real supervisor, as a process of its own, whose parts write and end."""
    program = f"""
import sys
from service.embedded import parts, supervisor

script = "mkdir -p {tmp_path}/written; touch {tmp_path}/written/$0"
parts.command = lambda part, folder, state: ["sh", "-c", script, part]
supervisor.STARTS_AT_FIRST = 1
sys.exit(supervisor.main())
"""
    before = os.umask(0)
    try:
        command = [sys.executable, "-c", program, "--state-dir", str(folder.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        os.umask(before)
    assert "did not start" in done.stdout, done.stderr
    written = [tmp_path / "written", *(tmp_path / "written").iterdir(), *folder.path.rglob("*")]
    assert len(written) > len(PARTS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o700, 0o600}


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_hangs_is_started_again_and_no_other(folder, capfd):
    with supervised(folder, Patience(look_s=0.05, silent_s=1.0)):
        poll(lambda: [parts.works(part, folder.load()) for part in PARTS], all)
        before = folder.load()
        os.kill(before.parts["mlflow"].pid, signal.SIGSTOP)
        after = poll(folder.load, lambda state: state.parts.get("mlflow") not in {None, before.parts["mlflow"]})
        poll(lambda: parts.works("mlflow", folder.load()), bool)
    assert after.restarts == {"mlflow": 1}
    assert {name: after.parts[name] for name in ("ray", "api")} == {name: before.parts[name] for name in ("ray", "api")}
    said = capfd.readouterr().out
    assert f"mlflow: process {before.parts['mlflow'].pid} runs but has not answered for" in said


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_never_answers_after_its_start_is_started_again(folder, monkeypatch):
    """It accepts connections and is silent from the first moment, as one that waits for a lock."""
    silent = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
    monkeypatch.setattr(
        parts,
        "command",
        lambda part, _, state: [
            *(sys.executable, "-c", silent if part == "ray" else SERVER, str(parts.port_of(part, state)))
        ],
    )
    with supervised(folder, Patience(starting_look_s=0.05, starting_s=1.0)):
        first = folder.load().parts["ray"]
        poll(folder.load, lambda state: state.parts.get("ray") not in {None, first})


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_does_not_answer_holds_up_no_other(folder, monkeypatch):
    asked, answer, works = threading.Event(), threading.Event(), parts.works

    def hang(part, state):
        if part != "ray":
            return works(part, state)
        asked.set()
        return answer.wait()

    monkeypatch.setattr(parts, "works", hang)
    with supervised(folder, Patience()):
        try:
            assert asked.wait(60)
            first = folder.load().parts["api"]
            os.kill(first.pid, signal.SIGKILL)
            poll(folder.load, lambda state: state.parts.get("api") not in {None, first})
        finally:
            answer.set()


@pytest.fixture
def not_ready(folder) -> Iterator[None]:
    """A stack whose API answers and cannot reach Ray, as recorded; one small server is all of its parts."""
    state = parts.prepare(folder.load(), None)
    state.temp_dir.rmdir()
    ports = state.ports.model_copy(update=dict.fromkeys(("mlflow", "ray_dashboard"), state.ports.api))
    with subprocess.Popen([sys.executable, "-c", SERVER, str(ports.api)], start_new_session=True) as server:
        who = Identity.of(server.pid)
        update = {"ports": ports, "parts": dict.fromkeys(PARTS, who), "supervisor": who}
        folder.save(state.model_copy(update=update))
        try:
            poll(lambda: parts.works("api", folder.load()), bool)
            yield
        finally:
            server.kill()


@pytest.mark.usefixtures("not_ready")
def test_status_and_doctor_say_what_the_api_waits_for(folder, monkeypatch):
    found = stack.status(folder)
    assert (found.up, found.reasons) == (False, ["Ray: no answer for 3 s"])
    assert all(part.works for part in found.parts), "the API is not to blame"
    shown = CliRunner().invoke(app, ["status", "--state-dir", str(folder.path)])
    assert shown.exit_code == 1
    assert "no job can run:  Ray: no answer for 3 s" in shown.output
    levels = {(check.name, check.found): check.level for check in doctor.examine(folder)}
    assert levels["ready for jobs", "Ray: no answer for 3 s"] == "broken"
    assert [level for (name, _), level in levels.items() if name == "api"] == ["fine"]
    monkeypatch.setattr(stack, "START_LIMIT_S", 0.5)
    monkeypatch.setattr(stack, "is_supervised", lambda _: True)
    with pytest.raises(stack.StackError, match=r"still waiting for Ray: no answer for 3 s after"):
        stack.up(folder, None, lambda _: None)

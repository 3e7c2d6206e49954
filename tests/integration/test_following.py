"""Following a job from the command line while the API is killed under it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from live import make_spec, poll, wait
from local_stack import NOT_INHERITED, Stack

from service.jobs.schemas import JobView
from service.jobs.state import State

EVENT = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([a-z]+)(?:  (.*))?$", re.MULTILINE)
LIMIT_S = 180.0


@contextmanager
def started(stack: Stack, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command line beside the test; what it prints goes into the new folder's `out` and `err`."""
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", *arguments],
            env=inherited | {"RCMAE_STATE_DIR": str(stack.state_dir)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def kill_api(stack: Stack) -> None:
    """And wait until the supervisor has started it again."""
    before = stack.state.parts["api"]
    os.kill(before.pid, signal.SIGKILL)
    poll(lambda: stack.state.parts.get("api"), lambda now: now not in {None, before} and stack.client.ready(), LIMIT_S)


def stored_lines(stack: Stack, job: JobView) -> dict[str, list[str]]:
    """Every line of a job's logs, by source."""
    found, page = defaultdict(list), stack.client.logs(job.id)
    while page.items:
        for line in page.items:
            found[line.source].append(line.message)
        page = stack.client.logs(job.id, cursor=page.next_cursor)
    return found


def test_followers_survive_the_api_being_killed(stack, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(make_spec(name="read-live", optimization={"epochs": 30})))
    with started(stack, tmp_path / "submit", "submit", str(file), "--follow", "--json") as submit:
        (submitted,) = poll(lambda: list(stack.client.jobs(name_contains="read-live")), lambda found: found, LIMIT_S)
        with started(stack, tmp_path / "logs", "jobs", "logs", submitted.id, "--follow", "--json") as logs:
            wait(stack, submitted.id, lambda job: job.state is State.RUNNING and job.progress)
            kill_api(stack)
            assert submit.wait(LIMIT_S) == 0, (tmp_path / "submit/err").read_text()
            assert logs.wait(LIMIT_S) == 0, (tmp_path / "logs/err").read_text()

    job = JobView.model_validate_json((tmp_path / "submit/out").read_bytes())
    assert (job.id, job.state, job.attempts) == (submitted.id, State.SUCCEEDED, 1)
    told = (tmp_path / "submit/err").read_text()
    assert told.count("waiting for the service") == told.count("the service is back") == 1
    assert "epoch" in told
    events = [(event.state.value, event.message) for event in stack.client.events(job.id)]
    assert [each for each in EVENT.findall(told) if each in events] == events
    assert {state for state, _ in set(EVENT.findall(told)) - set(events)} <= {"queued"}, "what it waits for is no event"

    followed = defaultdict(list)
    for text in (tmp_path / "logs/out").read_text().splitlines():
        line = json.loads(text)
        followed[line["source"]].append(line["message"])
    assert followed.keys() == {"driver", "rank-0", "rank-1"}
    assert followed == stored_lines(stack, job)

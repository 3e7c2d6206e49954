"""A real job one of whose workers hangs, on a stack that waits for no more than a few seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import psutil
import pytest
from live import artifacts, make_spec, poll, wait, wait_state
from local_stack import Stack, running_stack

from service.jobs.state import State
from service.searches.schemas import TrialState

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("impatient") / "state", RCMAE_STALL_LIMIT_S="10") as found:
        yield found


def test_an_attempt_whose_heartbeats_go_on_while_a_rank_hangs_is_stopped_and_tried_again(impatient):
    """Rank 0 waits for the other one in a collective, and its heartbeats are as ever."""
    job = impatient.client.submit(make_spec(name="hanging", optimization={"epochs": 2000}))
    wait(impatient, job.id, lambda seen: seen.progress is not None and seen.progress.step > 20)
    record = json.loads(
        (artifacts(impatient, impatient.client.job(job.id)) / "attempts/1/workers/rank-1.json").read_text()
    )
    psutil.Process(record["pid"]).suspend()
    stalled = wait(impatient, job.id, lambda seen: seen.state is State.RECOVERING)
    assert stalled.reason == "stalled"
    assert stalled.message.startswith("Training stood still at step ")
    assert "RCMAE_STALL_LIMIT_S" in stalled.message
    assert not psutil.pid_exists(record["pid"])
    wait(impatient, job.id, lambda seen: seen.state is State.RUNNING and seen.attempts == 2)
    impatient.client.cancel(job.id)
    wait_state(impatient, job.id, State.CANCELLED)


def test_a_trial_that_hangs_ends_its_process_and_resumes(impatient):
    """Its search sends heartbeats as ever, and Ray Tune would wait for it for ever."""
    base = make_spec(optimization={"epochs": 2000, "micro_batch_size": 40}, resources={"workers": 2})
    space = {"optimization.base_lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}}
    spec = {"kind": "search", "name": "hanging-trial", "base": base, "space": space, "scheduler": {"name": "none"}}
    job = impatient.client.submit(spec | {"budget": {"trials": 1, "concurrency": 1}})
    trial = partial(impatient.client.trial, job.id, 0)
    wait_state(impatient, job.id, State.RUNNING)
    poll(trial, lambda seen: seen.progress is not None and seen.progress.step > 20)
    folder = artifacts(impatient, impatient.client.job(job.id)).parents[1] / trial().run_id
    (record,) = folder.glob("artifacts/attempts/1/workers/rank-1.json")
    psutil.Process(json.loads(record.read_text())["pid"]).suspend()
    poll(trial, lambda seen: seen.attempts == [1, 2] and seen.state is TrialState.RUNNING)
    outcome = json.loads((record.parent.parent / "outcome.json").read_text())
    assert outcome["reason"] == "stalled"
    assert outcome["message"].startswith("Training stood still at step ")
    impatient.client.cancel(job.id)
    wait_state(impatient, job.id, State.CANCELLED)

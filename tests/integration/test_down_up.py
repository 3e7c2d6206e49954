"""A pause that outlives the stack: down, up, and on with another number of workers."""

from __future__ import annotations

import pytest
from live import make_spec, wait, wait_state
from local_stack import rcmae, running_stack

from service.jobs.state import State
from trainer.spec import metric_keys

pytestmark = pytest.mark.slow

STEPS, BATCH = 200, 160


def test_a_paused_job_goes_on_at_the_same_sample_after_down_and_up_with_another_number_of_workers(tmp_path):
    state_dir = tmp_path / "state"
    spec = make_spec(optimization={"precision": "fp32"})
    with running_stack(state_dir) as stack:
        straight = wait_state(stack, stack.client.submit(spec).id, State.SUCCEEDED)
        job = stack.client.submit(spec)
        wait(stack, job.id, lambda seen: seen.progress is not None and seen.progress.step > 25)
        stack.client.pause(job.id)
        wait_state(stack, job.id, State.PAUSED)
        for command in (["down"], ["up", "--detach"]):
            done = rcmae(state_dir, *command)
            assert done.returncode == 0, done.stderr
        assert stack.client.job(job.id).state is State.PAUSED
        stack.client.resume(job.id, resources={"workers": 1})
        wait_state(stack, job.id, State.SUCCEEDED)

        first, second = stack.client.attempts(job.id)
        assert [(first.state, first.workers), (second.state, second.workers)] == [("paused", 2), ("succeeded", 1)]
        step = int(first.checkpoint.rpartition("/")[2])
        log = "\n".join(line.message for line in stack.client.logs(job.id, attempt=2, source="rank-0").items)
        assert f"Resuming at step {step} of {STEPS} from {first.checkpoint}" in log

        both = [
            stack.client.metrics(found.id, [metric_keys.SAMPLES, metric_keys.LOSS]).series for found in (straight, job)
        ]
        samples, losses = ([series[key] for series in both] for key in (metric_keys.SAMPLES, metric_keys.LOSS))
        assert [(p.step, p.value) for p in samples[1]] == [(p.step, p.step * BATCH) for p in samples[0]]
        assert [p.value for p in losses[1]] == pytest.approx([p.value for p in losses[0]], abs=1e-4)

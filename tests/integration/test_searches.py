"""Searches on a live stack: real Ray Tune, MLflow and study; what is asked for while they run, and what kills them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import make_spec, members, poll, wait_state
from mlflow.tracking import MlflowClient
from pages import script_of

from service.jobs.state import State
from service.searches.schemas import TrialState
from trainer.protocol import names
from trainer.spec import metric_keys

RATE, MOMENTUM = "optimization.base_lr", "method.teacher.momentum"
BASE = make_spec(
    optimization={"epochs": 9, "micro_batch_size": 80},
    evaluation={"every_epochs": 1},
    resources={"workers": 1},
    checkpoint={"every_epochs": 1},
)


def spec_of(name: str, base: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    """A search of two trials at a time over learning rate and momentum."""
    return {
        "kind": "search",
        "name": name,
        "base": BASE | (base or {}),
        "space": {
            RATE: {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
            MOMENTUM: {"type": "float", "low": 0.9, "high": 0.9999},
        },
        "scheduler": {"name": "asha", "grace_epochs": 1, "reduction_factor": 3},
        "budget": {"trials": 4, "concurrency": 2},
    } | parts


def trials_of(stack, job_id):
    return sorted(stack.client.trials(job_id), key=lambda trial: trial.number)


def agree(stack, job_id: str, trials: int) -> int:
    """Every number was given once and ended once, and the trials' runs in MLflow say what the study says; gives the
    number of evaluations that both have.
    """
    evaluations = 0
    found = trials_of(stack, job_id)
    assert [trial.number for trial in found] == list(range(trials))
    assert all(trial.state.ended for trial in found), found
    client = MlflowClient(stack.mlflow_url)
    for trial in found:
        run = client.get_run(trial.run_id)
        assert run.data.tags[names.TAG_TRIAL] == str(trial.number)
        assert run.info.status == ("FAILED" if trial.state is TrialState.FAILED else "FINISHED")
        detail = stack.client.trial(job_id, trial.number)
        values = {point.step: point.value for point in client.get_metric_history(trial.run_id, metric_keys.LINEAR_TOP1)}
        steps_per_epoch = 10
        measured = {step // steps_per_epoch: value for step, value in values.items() if step}
        assert {round(point.epoch): point.value for point in detail.intermediate} == measured
        evaluations += len(measured)
    return evaluations


@pytest.mark.timeout(900)
def test_a_search_with_curl_finds_its_best_trial_and_promotes_it(stack, tmp_path):
    """The walk of the page, then what the study, MLflow and the trials' logs say of the same search."""
    printed = stack.bash(script_of(stack.url, "searches.md", "A search, with curl"), tmp_path, timeout=800)
    shown = next(json.loads(line) for line in printed.splitlines() if line.startswith('{"id":'))
    assert (shown["trials"]["failed"], shown["budget"]["trials"], shown["state"]) == (0, 5, "succeeded")
    assert sum(shown["trials"].values()) >= 5
    assert [line for line in printed.splitlines() if line.startswith("number,")]
    for plot in ("history", "curves", "parallel", "importance", "slice", "timeline", "contour"):
        assert json.loads((tmp_path / f"{plot}.json").read_text())["name"] == plot
    assert "walk-search-v1/hf/model.safetensors" in printed.splitlines()

    job_id, trials = shown["id"], trials_of(stack, shown["id"])
    agree(stack, job_id, sum(shown["trials"].values()))
    (best,) = stack.client.search(job_id).best
    done = stack.client.job(job_id)
    assert best.values[0] == max(trial.values[0] for trial in trials if trial.values)
    assert done.result.metrics[metric_keys.LINEAR_TOP1] == best.values[0]
    assert f"trial {best.number}" in done.message
    promoted = stack.client.promote(job_id, best.number, overrides={"optimization.epochs": 20})
    assert promoted.state is State.SUCCEEDED, "the walk has promoted it"
    assert (promoted.promoted_from.search, promoted.promoted_from.trial) == (job_id, best.number)
    assert promoted.spec["optimization"]["base_lr"] == best.params[RATE]
    assert stack.client.backbone("walk-search").versions == [1]
    for trial in trials:  # pruned or not
        last = round(stack.client.trial(job_id, trial.number).intermediate[-1].epoch)
        logs = stack.client.trial_logs(job_id, trial.number).items
        assert any(f"Evaluation at step {last * 10}:" in line.message for line in logs), (trial, logs)
    assert stack.client.trial_images(job_id, best.number)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_asked_for_while_it_runs_is_done(stack):
    job = stack.client.submit(spec_of("steered", base={"optimization": BASE["optimization"] | {"epochs": 200}},
                                      scheduler={"name": "none"}, budget={"trials": 20, "concurrency": 1}))  # fmt: skip
    wait_state(stack, job.id, State.RUNNING)
    running = lambda: [t.number for t in trials_of(stack, job.id) if t.state is TrialState.RUNNING]  # noqa: E731
    poll(running, lambda found: found == [0])
    stack.client.change_search(job.id, concurrency=2)
    poll(running, lambda found: found == [0, 1])
    alive = poll(lambda: stack.client.trial(job.id, 0), lambda trial: trial.progress and trial.heartbeat_at)
    assert (alive.progress.steps, alive.progress.epochs) == (2000, 200)
    assert alive.progress.loss > 0
    poll(lambda: stack.client.trial(job.id, 0).intermediate, bool)
    stack.client.stop_trial(job.id, 0)
    stopped = poll(lambda: stack.client.trial(job.id, 0), lambda trial: trial.state.ended)
    assert (stopped.state, stopped.reason) == (TrialState.PRUNED, "stopped_by_user")
    assert stopped.values
    poll(running, lambda found: found == [1, 2])  # its place was taken at once
    (waiting,) = stack.client.add_trials(job.id, [{RATE: 2e-3}])
    assert waiting.state is TrialState.WAITING
    stack.client.stop_trial(job.id, 1)
    poll(lambda: stack.client.trial(job.id, waiting.number), lambda trial: trial.state is TrialState.RUNNING)
    assert stack.client.trial(job.id, waiting.number).params[RATE] == 2e-3
    stack.client.pause(job.id)
    wait_state(stack, job.id, State.PAUSED)
    before = running()
    assert len(before) == 2
    epochs = {number: stack.client.trial(job.id, number).epoch for number in before}
    stack.client.resume(job.id)
    wait_state(stack, job.id, State.RUNNING)
    poll(lambda: {n: stack.client.trial(job.id, n).epoch for n in before}, lambda now: all(
        (now[n] or 0) > (epochs[n] or 0) for n in before))  # fmt: skip
    assert all(stack.client.trial(job.id, number).attempts == [1, 2] for number in before)
    stack.client.cancel(job.id)
    wait_state(stack, job.id, State.CANCELLED)
    assert not running()
    agree(stack, job.id, len(trials_of(stack, job.id)))


# --- what dies in the middle of a search ------------------------------------------------------------------------------

HEAD = (
    "| killed | when | attempts of the search | trials | starts of each | evaluations, equal in the study and MLflow |"
)


CALLED = {"driver": "driver", "trial": "a trial's process", "ray": "Ray head", "api": "API"}


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of what became of each kill; written where RCMAE_SEARCH_TABLE names a file."""
    rows = [HEAD, "|---" * 6 + "|"]
    yield rows
    place = os.environ.get("RCMAE_SEARCH_TABLE")
    if place:
        Path(place).write_text("\n".join(rows) + "\n")


def strike(stack, what: str) -> None:
    """SIGKILL one part of the stack that a running search needs."""
    if what in stack.state.parts:
        os.kill(stack.state.parts[what].pid, signal.SIGKILL)
        return
    word, count = {"driver": ("trainer.main", None), "trial": ("ray::ImplicitFunc", 1)}[what]
    for process in poll(lambda: members(stack, word), bool)[:count]:  # a driver has a shell around it
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("what", CALLED)
def test_whatever_is_killed_every_trial_ends_once(stack, table, what):
    job = stack.client.submit(spec_of(f"killed-{what}", scheduler={"name": "none"}))
    wait_state(stack, job.id, State.RUNNING)
    before = poll(lambda: [t for t in trials_of(stack, job.id) if t.state is TrialState.RUNNING and t.epoch], bool)
    strike(stack, what)
    wait_state(stack, job.id, State.SUCCEEDED, timeout_s=600)
    evaluations = agree(stack, job.id, 4)
    counted = Counter(trial.state for trial in trials_of(stack, job.id))
    assert counted == {TrialState.COMPLETE: 4}
    assert evaluations == 4 * BASE["optimization"]["epochs"]
    when = ", ".join(f"trial {trial.number} at epoch {trial.epoch:g}" for trial in before)
    ends = ", ".join(attempt.reason or attempt.state for attempt in stack.client.attempts(job.id))
    starts = "; ".join(str(len(stack.client.trial(job.id, number).attempts)) for number in range(4))
    told = f"{counted[TrialState.COMPLETE]} complete, numbers 0 to 3, none open"
    table.append(f"| {CALLED[what]} | {when} | {ends} | {told} | {starts} | {evaluations} |")


# --- many, and wide ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_trials_of_a_second_all_end(stack):
    model = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "decoder_embed_dim": 16}
    base = {
        "model": BASE["model"] | model,
        "optimization": BASE["optimization"] | {"epochs": 1, "global_batch_size": 800, "micro_batch_size": 800},
    }
    budget = {"trials": 200, "concurrency": 2, "max_failed": 0}
    job = stack.client.submit(spec_of("many", base=base, scheduler={"name": "none"}, budget=budget))
    done = wait_state(stack, job.id, State.SUCCEEDED, timeout_s=1500)
    found = trials_of(stack, job.id)
    assert [trial.number for trial in found] == list(range(200))
    assert {trial.state for trial in found} == {TrialState.COMPLETE}, done.message
    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_run(done.run_id).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`{names.TAG_TRIAL_OF}` = '{job.id}'", max_results=1000)
    assert sorted(int(run.data.tags[names.TAG_TRIAL]) for run in runs) == list(range(200))
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trials_of_several_workers_are_pruned_and_end(stack):
    base = {"resources": BASE["resources"] | {"workers": 2}}
    job = stack.client.submit(spec_of("wide", base=base, budget={"trials": 3, "concurrency": 1}))
    wait_state(stack, job.id, State.SUCCEEDED, timeout_s=900)
    agree(stack, job.id, 3)


@pytest.mark.timeout(900)
def test_evaluations_are_trials_and_the_best_one_becomes_an_evaluation(stack):
    """Two trials over the learning rate of a fine-tuning; the better one is promoted, with its baseline."""
    source = stack.client.submit(make_spec(optimization={"epochs": 1, "micro_batch_size": 80}))
    wait_state(stack, source.id, State.SUCCEEDED)
    rate, score = "protocols.finetune.base_lr", "eval/finetune_top1"
    finetune = {"name": "finetune", "recipe": "small", "epochs": 1, "batch_size": 64, "hflip": False}
    base = {
        "kind": "evaluate",
        "backbone": {"job": source.id},
        "dataset": {"uri": "builtin://digits", "fraction": 0.3},
        "protocols": [finetune],
        "seeds": 1,
        "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
    }
    job = stack.client.submit(
        {
            "kind": "search",
            "name": "rates",
            "base": base,
            "space": {rate: {"type": "categorical", "choices": [1e-5, 3e-3]}},
            "objective": {"metric": score},
            "budget": {"trials": 2, "concurrency": 1},
        }
    )
    done = wait_state(stack, job.id, State.SUCCEEDED, State.FAILED)
    assert done.state is State.SUCCEEDED, done.message
    trials = trials_of(stack, job.id)
    assert {trial.params[rate] for trial in trials} == {1e-5, 3e-3}
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    (best,) = stack.client.search(job.id).best
    assert best.values == [max(trial.values[0] for trial in trials)]
    assert done.result.metrics == {score: best.values[0]}
    detail = stack.client.trial(job.id, best.number)
    assert detail.metrics[score] == best.values[0]
    assert not [key for key in detail.metrics if key.endswith("_scratch")]
    assert any("Measured finetune" in line.message for line in stack.client.trial_logs(job.id, best.number).items)

    promoted = stack.client.promote(job.id, best.number)
    ended = wait_state(stack, promoted.id, State.SUCCEEDED, State.FAILED)
    assert ended.state is State.SUCCEEDED, ended.message
    assert ended.result.metrics[score] == pytest.approx(best.values[0])
    assert f"{score}_scratch" in ended.result.metrics

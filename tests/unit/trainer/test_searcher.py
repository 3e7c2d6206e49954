"""The searcher: what it hands out, what it makes of every end, and what the next attempt of a search goes on with."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import pickle
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from sqlalchemy import event

from trainer import patience, temporary
from trainer.attempt.outcome import settle_outcome, write_outcome
from trainer.errors import DataError, StorageError
from trainer.protocol import names
from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest, Source
from trainer.search import record, run, searcher, study
from trainer.search.drawing import Drawing
from trainer.search.record import SearchRecord
from trainer.search.schedulers import make_scheduler
from trainer.search.searcher import StudySearch
from trainer.search.trial import REQUEST, TRIAL, ObjectiveNotMeasured, TrialContext, TrialRecorder, do_trial
from trainer.spec import metric_keys
from trainer.spec.search import SearchSpec
from trainer.storage import Store

METRIC, RATE = metric_keys.LINEAR_TOP1, "optimization.base_lr"
SPEC = {
    "kind": "search",
    "base": {
        "dataset": {"uri": "builtin://digits"},
        "model": {"img_size": 8, "patch_size": 2, "in_chans": 1},
        "optimization": {"epochs": 9, "global_batch_size": 64},
        "evaluation": {"every_epochs": 1},
        "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0},
        "retry": {"max_failures": 1},
    },
    "space": {RATE: {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}},
    "algorithm": {"name": "random"},
    "budget": {"trials": 6, "concurrency": 2, "max_failed": 1},
}


class FakeRuns:
    """MLflow as far as a searcher needs it."""

    def __init__(self, root: Path) -> None:
        self.root, self.ended = root, {}

    def open(self, number, name, params, known):  # noqa: ARG002 - the signature of `TrialRuns`
        folder = self.root / f"trial-{number}"
        folder.mkdir(exist_ok=True)
        return f"run-{number}", str(folder)

    def end(self, run_id, status):
        self.ended[run_id] = status


@dataclass(frozen=True)
class Named:
    """A trial as schedulers know it."""

    trial_id: str


class Bench:
    """Searchers over one study, and trials that do what a test says."""

    def __init__(self, root: Path, url: str, job_id: str = "job-s") -> None:
        self.root, self.url, self.job_id, self.runs = root, url, job_id, FakeRuns(root)
        self.channel = SimpleNamespace(orders=None, read_command_patiently=self.command)
        self.wanted = None
        self.attempts = 0

    def command(self):
        """What the search's run says: trials may know it before their search does."""
        action = self.wanted or self.trial_action
        return Command(attempt=self.attempts, generation=1, action=action) if action else None

    trial_action = None

    def search(self, source=None, **parts) -> StudySearch:
        """The next attempt's; ``source``: where its trials read what they measure."""
        self.attempts += 1
        spec = SearchSpec.parse(SPEC | parts)
        request = AttemptRequest(
            job_id=self.job_id,
            attempt=self.attempts,
            run_id="run-s",
            tracking_uri="x",
            artifact_uri=str(self.root),
            source=source,
            spec=spec,
        )
        return StudySearch(
            request, spec, self.runs, self.channel, SimpleNamespace(requested_action=lambda: self.wanted)
        )

    def study(self):
        """As others see it."""
        return optuna.load_study(study_name=self.job_id, storage=self.url)

    def trials(self):
        return self.study().trials

    def checkpoints(self, config) -> Path:
        """Where a trial stores them."""
        return Path(AttemptRequest.model_validate_json(config[REQUEST]).artifact_uri) / names.CHECKPOINTS

    def kept(self):
        """Numbers of trials that have theirs."""
        return [t.number for t in self.trials() if (self.root / f"trial-{t.number}" / names.CHECKPOINTS).exists()]

    def states(self):
        return [trial.state.name for trial in self.trials()]

    @staticmethod
    def number(config) -> int:
        return TrialContext.model_validate_json(config[TRIAL]).number

    @staticmethod
    def leave(config, state="succeeded", reason=None, message=""):
        """What a trial's own process writes as its last act."""
        request = AttemptRequest.model_validate_json(config[REQUEST])
        write_outcome(
            Store(request.artifact_uri), request.attempt, Outcome(state=state, reason=reason, message=message)
        )


@pytest.fixture
def bench(request, tmp_path, monkeypatch) -> Bench:
    """Its study lies in SQLite, or where a test asks for it in Postgres."""
    elsewhere = getattr(request, "param", "sqlite") == "postgres"
    url = request.getfixturevalue("postgres").url("studies") if elsewhere else f"sqlite:///{tmp_path}/studies.db"
    monkeypatch.setenv(names.STUDY_VARIABLE, url)
    return Bench(tmp_path, url)


def evaluation(epoch, value):
    return {METRIC: value, metric_keys.EPOCH: epoch, metric_keys.LOSS: 1.0}


def complete(bench, search, name, config, value):
    search.on_trial_result(name, evaluation(9, value))
    bench.leave(config)
    search.on_trial_complete(name, evaluation(9, value))


on_both = pytest.mark.parametrize("bench", ["sqlite", "postgres"], indirect=True)


# --- handing out ------------------------------------------------------------------------------------------------------


def test_trials_are_handed_out_as_many_at_a_time_as_the_orders_say(bench):
    search = bench.search()
    assert search.suggest("a")
    assert search.suggest("b")
    assert search.suggest("c") is None
    bench.channel.orders = SearchOrders(trials=6, concurrency=3, max_failed=1)
    assert search.suggest("c")
    assert search.suggest("d") is None


@on_both
def test_a_search_ends_when_its_budget_is_done(bench):
    search = bench.search()
    for index in range(6):
        complete(bench, search, "a", search.suggest("a"), index / 10)
    assert search.suggest("a") == Searcher.FINISHED
    assert bench.states() == ["COMPLETE"] * 6
    assert search.outcome() == Outcome(state="succeeded")
    assert [trial.value for trial in bench.trials()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert set(bench.runs.ended.values()) == {"FINISHED"}


@on_both
def test_what_somebody_chose_comes_first(bench):
    search = bench.search()
    bench.study().enqueue_trial({RATE: 2e-4})
    config = search.suggest("a")
    assert AttemptRequest.model_validate_json(config[REQUEST]).spec.optimization.base_lr == 2e-4


def test_values_that_are_no_spec_end_their_trial_with_the_reason_and_another_begins(bench):
    space = {"method.mask_ratio": {"type": "categorical", "choices": [0.99, 0.5]}}
    search = bench.search(space=space, algorithm={"name": "grid"}, budget={"trials": 2, "concurrency": 1})
    config = search.suggest("a")
    complete(bench, search, "a", config, 0.5)
    assert search.suggest("a") == Searcher.FINISHED
    infeasible = next(trial for trial in bench.trials() if trial.state is TrialState.FAIL)
    assert infeasible.user_attrs[names.TRIAL_REASON] == Reason.INFEASIBLE
    assert "leaves 0 of 16 patches visible" in infeasible.user_attrs[names.TRIAL_MESSAGE]
    assert search.outcome().state == "succeeded"


GRID = {
    "space": {
        "method.mask_ratio": {"type": "float", "low": 0.5, "high": 0.7, "step": 0.1},
        "optimization.warmup_epochs": {"type": "int", "low": 1, "high": 2},
    },
    "algorithm": {"name": "grid"},
    "budget": {"trials": 9, "concurrency": 1, "max_failed": 1},
}


def combinations(bench):
    """Those of complete trials."""
    return [
        tuple(round(trial.params[path], 6) for path in GRID["space"])
        for trial in bench.trials()
        if trial.state is TrialState.COMPLETE
    ]


@on_both
def test_a_failed_point_of_a_grid_is_tried_again_and_every_other_one_once(bench):
    search = bench.search(**GRID)
    config = search.suggest("a")
    bench.leave(config, "failed", Reason.LOSS_NOT_FINITE, "the loss was not finite")
    search.on_trial_complete("a", error=True)
    complete(bench, search, "a", search.suggest("a"), 0.1)
    failed = bench.trials()[0]
    bench.study().enqueue_trial(failed.params, user_attrs={names.TRIAL_RETRY_OF: 0})
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.2)
    assert bench.states() == ["FAIL"] + ["COMPLETE"] * 6
    assert bench.trials()[2].params == failed.params
    assert sorted(combinations(bench)) == [(ratio, warmup) for ratio in (0.5, 0.6, 0.7) for warmup in (1, 2)]
    assert search.outcome().state == "succeeded"


def test_a_grid_that_is_done_takes_a_failed_point_again_in_a_new_attempt(bench):
    search = bench.search(**GRID)
    bench.leave(search.suggest("a"), "failed", Reason.LOSS_NOT_FINITE, "the loss was not finite")
    search.on_trial_complete("a", error=True)
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.2)
    bench.study().enqueue_trial(bench.trials()[0].params, user_attrs={names.TRIAL_RETRY_OF: 0})
    search = bench.search(**GRID)
    complete(bench, search, "a", search.suggest("a"), 0.3)
    assert search.suggest("a") == Searcher.FINISHED
    assert len(set(combinations(bench))) == len(combinations(bench)) == 6


@pytest.mark.parametrize(
    "point", [{"method.mask_ratio": 0.7}, {"method.mask_ratio": 0.5, "optimization.warmup_epochs": 1}]
)
def test_chosen_points_of_a_grid_are_combinations_of_it(bench, point):
    search = bench.search(**GRID)
    complete(bench, search, "a", search.suggest("a"), 0.1)
    bench.study().enqueue_trial(point)
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.2)
    assert bench.trials()[1].params.items() >= point.items()
    assert sorted(combinations(bench)) == [(ratio, warmup) for ratio in (0.5, 0.6, 0.7) for warmup in (1, 2)]


def test_a_trial_that_is_tried_again_takes_no_other_trials_place(bench):
    search = bench.search()
    bench.leave(search.suggest("a"), "failed", Reason.LOSS_NOT_FINITE, "the loss was not finite")
    search.on_trial_complete("a", error=True)
    bench.study().enqueue_trial(bench.trials()[0].params, user_attrs={names.TRIAL_RETRY_OF: 0})
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.2)
    assert bench.states() == ["FAIL"] + ["COMPLETE"] * 6, "six trials of the budget, and one beyond it"


def test_a_drained_search_finishes_what_runs_and_starts_nothing(bench):
    search = bench.search()
    config = search.suggest("a")
    bench.channel.orders = SearchOrders(trials=6, concurrency=2, max_failed=1, draining=True)
    assert search.suggest("b") is None
    complete(bench, search, "a", config, 0.5)
    assert search.suggest("b") == Searcher.FINISHED


def test_after_its_hours_no_trial_begins(bench):
    search = bench.search(budget={"trials": 6, "concurrency": 2, "max_hours": 1})
    assert search.suggest("a")
    search._started_at -= 3601
    assert search.suggest("b") is None


def test_the_time_spent_is_that_of_all_attempts(bench):
    first = bench.search()
    first._started_at -= 100
    first._stored_at -= 100
    first.suggest("a")
    assert bench.search().elapsed_seconds() >= 100


# --- one wanted trial is one trial ------------------------------------------------------------------------------------


@pytest.fixture
def without_pauses(monkeypatch):
    """Trying again takes no time."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)


def lose_an_answer(search, number):
    """The database makes the change of this number, counted from 0, and its answer is lost. Gives the count."""
    dialect, commits = search.record.study._storage._backend.engine.dialect, itertools.count()
    commit = type(dialect).do_commit

    def do_commit(connection):
        commit(dialect, connection)
        if next(commits) == number:
            raise dialect.loaded_dbapi.OperationalError("the connection was lost")

    dialect.do_commit = do_commit
    return commits


DECAY = "optimization.weight_decay"
TWO = {"space": {RATE: SPEC["space"][RATE], DECAY: {"type": "float", "low": 0, "high": 0.2}}}


@pytest.mark.usefixtures("without_pauses")
def test_whichever_answer_of_the_database_is_lost_a_wanted_trial_is_one_trial_with_all_its_values(bench):
    """A trial that somebody has added begins, and a new one. Each search loses another answer, until none is left."""
    for lost in itertools.count():
        each = Bench(bench.root / str(lost), bench.url, f"job-{lost}")
        each.root.mkdir()
        search = each.search(**TWO, budget={"trials": 2, "concurrency": 3})
        each.study().enqueue_trial({RATE: 2e-4})
        commits = lose_an_answer(search, lost)
        configs = [search.suggest(name) for name in "ab"]
        assert search.suggest("c") is None
        assert search.error is None
        specs = [AttemptRequest.model_validate_json(config[REQUEST]).spec.optimization for config in configs]
        trials = each.trials()
        assert [trial.state.name for trial in trials] == ["RUNNING"] * 2, f"the answer to change {lost} was lost"
        assert [trial.params for trial in trials] == [{RATE: s.base_lr, DECAY: s.weight_decay} for s in specs]
        assert trials[0].params[RATE] == 2e-4
        if next(commits) <= lost:
            break
    assert lost > 10, "two trials make many changes"


@on_both
@pytest.mark.parametrize("values", [(), (RATE,), (RATE, DECAY)])
def test_a_trial_whose_attempt_died_while_its_values_were_chosen_gets_the_others_before_it_trains(bench, values):
    bench.search(**TWO, budget={"trials": 1, "concurrency": 1})
    begun = bench.study().ask()
    for path in values:
        begun.suggest_float(path, TWO["space"][path]["low"], TWO["space"][path]["high"], log=path == RATE)
    search = bench.search(**TWO, budget={"trials": 1, "concurrency": 1})
    config = search.suggest("a")
    optimization = AttemptRequest.model_validate_json(config[REQUEST]).spec.optimization
    (trial,) = bench.trials()
    assert trial.params == {RATE: optimization.base_lr, DECAY: optimization.weight_decay}
    assert trial.params.items() >= begun.params.items()
    complete(bench, search, "a", config, 0.5)
    assert search.suggest("b") == Searcher.FINISHED


@pytest.mark.usefixtures("without_pauses")
def test_repeats_are_added_once_whichever_answer_is_lost(bench):
    for lost in range(3):
        each = Bench(bench.root / str(lost), bench.url, f"job-{lost}")
        each.root.mkdir()
        search = each.search(budget={"trials": 1, "concurrency": 1}, repeats={"best": 1, "seeds": 2})
        complete(each, search, "a", search.suggest("a"), 0.5)
        lose_an_answer(search, lost)
        while (config := search.suggest("a")) != Searcher.FINISHED:
            complete(each, search, "a", config, 0.5)
        assert [trial.user_attrs.get(names.TRIAL_SEED) for trial in each.trials()] == [None, 1, 2]


# --- a finite space ---------------------------------------------------------------------------------------------------


RATIO, WARMUP = "method.mask_ratio", "optimization.warmup_epochs"
SIX = {RATIO: {"type": "float", "low": 0.5, "high": 0.7, "step": 0.1}, WARMUP: {"type": "int", "low": 1, "high": 2}}


def finite(bench, **parts):
    return bench.search(**{"space": SIX, "budget": {"trials": 20, "concurrency": 1, "max_failed": 1}} | parts)


def points(trials):
    return [(round(trial.params[RATIO], 6), trial.params[WARMUP]) for trial in trials]


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid", "qmc", "cmaes", "gp"])
def test_no_point_of_a_finite_space_is_trained_twice_and_all_of_them_end_the_search(bench, algorithm):
    search, spec = finite(bench, algorithm={"name": algorithm}), SearchSpec.parse(SPEC | {"space": SIX})
    assert spec.trials == spec.size == 6
    bench.channel.orders = SearchOrders(trials=20, concurrency=1, max_failed=1)  # as of a service that counts no points
    for _ in range(3):
        complete(bench, search, "a", search.suggest("a"), 0.5)
    search = finite(bench, algorithm={"name": algorithm})
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.5)
    assert search.outcome() == Outcome(state="succeeded")
    assert bench.states() == ["COMPLETE"] * 6
    assert sorted(points(bench.trials())) == [(ratio, warmup) for ratio in (0.5, 0.6, 0.7) for warmup in (1, 2)]


def test_trials_that_run_at_a_time_have_different_points(bench):
    search = finite(bench, budget={"trials": 6, "concurrency": 6})
    assert all(search.suggest(name) for name in "abcdef")
    assert len(set(points(bench.trials()))) == 6
    assert search.suggest("g") is None


def test_a_space_with_conditions_is_tried_to_its_end(bench):
    momentum = {"type": "float", "low": 0.99, "high": 0.996, "step": 0.002, "when": {"method.name": "rc_mae"}}
    space = {"method.name": {"type": "categorical", "choices": ["mae", "rc_mae"]}, "method.teacher.momentum": momentum}
    search = finite(bench, space=space, algorithm={"name": "tpe"})
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.5)
    trained = [trial.params for trial in bench.trials()]
    assert len(trained) == 5
    assert trained.count({"method.name": "mae"}) == 1


def test_a_point_that_somebody_adds_again_takes_the_known_value_and_no_place(bench):
    search = finite(bench)
    complete(bench, search, "a", search.suggest("a"), 0.25)
    bench.study().enqueue_trial(bench.trials()[0].params)
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.5)
    first, copied, *others = bench.trials()
    assert (copied.state, copied.value, copied.intermediate_values) == (TrialState.COMPLETE, 0.25, {9: 0.25})
    assert copied.user_attrs[names.TRIAL_COPY_OF] == 0
    assert names.TRIAL_ATTEMPTS not in copied.user_attrs, "it did not train"
    assert copied.user_attrs[names.TRIAL_METRICS] == first.user_attrs[names.TRIAL_METRICS]
    assert len(set(points([first, *others]))) == 6


@on_both
@pytest.mark.parametrize("restart", [False, True])
def test_a_point_that_is_added_while_it_runs_ends_with_it(bench, restart):
    search = finite(bench)
    bench.channel.orders = SearchOrders(trials=6, concurrency=2, max_failed=1)
    search.suggest("a")
    bench.study().enqueue_trial(bench.trials()[0].params)
    assert bench.number(search.suggest("b")) == 2
    if restart:
        search = finite(bench)
        assert [bench.number(search.suggest(name)) for name in "ab"] == [0, 2]
        assert search.suggest("c") is None
    assert bench.states() == ["RUNNING"] * 3
    search.on_trial_result("a", evaluation(3, 0.4))
    search.running["a"].stop_reason = "Stopped by asha"
    search.on_trial_complete("a", evaluation(6, 0.3))
    stopped, copied, _ = bench.trials()
    assert (stopped.state, copied.state) == (TrialState.PRUNED, TrialState.PRUNED)
    assert copied.intermediate_values == stopped.intermediate_values == {3: 0.4, 6: 0.3}


@on_both
@pytest.mark.parametrize("restart", ["no", "while they wait", "after the end"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_point_that_is_added_while_it_runs_is_trained_if_that_trial_says_nothing_of_it(bench, restart, stopped):
    """Two such trials: one retries the point, and the other ends with it. None counts against the budget."""
    parts = {"budget": {"trials": 6, "concurrency": 1, "max_failed": 1}}
    search = finite(bench, **parts)
    config = search.suggest("a")
    for _ in range(2):
        bench.study().enqueue_trial(bench.trials()[0].params)
    bench.channel.orders = SearchOrders(trials=6, concurrency=2, max_failed=1, stopped=(0,) if stopped else ())
    assert bench.number(search.suggest("b")) == 3
    assert bench.states() == ["RUNNING"] * 4
    assert bench.trials()[1].user_attrs[names.TRIAL_MESSAGE] == "Waits for trial 0, which has the same values."
    if restart == "while they wait":
        search = finite(bench, **parts)
        config = search.suggest("a")
        assert bench.number(search.suggest("b")) == 3
    bench.leave(config, *(("cancelled",) if stopped else ("failed", Reason.OUT_OF_MEMORY, "out of memory")))
    search.on_trial_complete("a", error=not stopped)
    if restart == "after the end":
        search = finite(bench, **parts)
        retried, other = search.suggest("a"), search.suggest("b")
        assert (bench.number(retried), bench.number(other)) == (1, 3)
    else:
        retried = search.suggest("a")
        assert bench.number(retried) == 1
    complete(bench, search, "a", retried, 0.4)
    while (config := search.suggest("a")) is not None:
        complete(bench, search, "a", config, 0.5)
    first, retry, copied, *others = bench.trials()
    assert first.state is (TrialState.PRUNED if stopped else TrialState.FAIL)
    assert retry.user_attrs[names.TRIAL_RETRY_OF] == 0
    assert (retry.state, retry.value, retry.user_attrs[names.TRIAL_MESSAGE]) == (TrialState.COMPLETE, 0.4, "")
    assert (copied.state, copied.value, copied.user_attrs[names.TRIAL_COPY_OF]) == (TrialState.COMPLETE, 0.4, 1)
    assert len(set(points(bench.trials()))) == len(others) + 1 == 6


def test_a_point_without_a_value_is_trained_when_somebody_adds_it_again(bench):
    search = finite(bench)
    bench.leave(search.suggest("a"), "failed", Reason.LOSS_NOT_FINITE, "the loss was not finite")
    search.on_trial_complete("a", error=True)
    bench.study().enqueue_trial(bench.trials()[0].params)
    while (config := search.suggest("a")) != Searcher.FINISHED:
        complete(bench, search, "a", config, 0.5)
    assert bench.states() == ["FAIL"] + ["COMPLETE"] * 6
    assert bench.trials()[1].user_attrs[names.TRIAL_RETRY_OF] == 0
    assert len(set(points(bench.trials()[1:]))) == 6


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("ends", [True, False])
def test_a_point_that_somebody_adds_again_takes_no_value_of_a_repeat(bench, restart, ends):
    parts = {"budget": {"trials": 1, "concurrency": 1, "max_failed": 2}, "repeats": {"best": 1, "seeds": 1}}
    search = finite(bench, **parts)
    complete(bench, search, "a", search.suggest("a"), 0.25)
    repeat = search.suggest("a")
    if ends:
        complete(bench, search, "a", repeat, 0.9)
    else:
        bench.leave(repeat, "failed", Reason.OUT_OF_MEMORY, "out of memory")
        search.on_trial_complete("a", error=True)
    bench.study().enqueue_trial(bench.trials()[0].params)
    bench.channel.orders = SearchOrders(trials=2, concurrency=1, max_failed=2)
    search = finite(bench, **parts) if restart else search
    search.suggest("a")
    copied = bench.trials()[2]
    assert (copied.user_attrs[names.TRIAL_COPY_OF], copied.value) == (0, 0.25)


def test_a_point_of_an_infinite_space_may_be_trained_again(bench):
    search = bench.search()
    complete(bench, search, "a", search.suggest("a"), 0.25)
    bench.study().enqueue_trial(bench.trials()[0].params)
    assert bench.number(search.suggest("a")) == 1


# --- data on which nothing can be measured ----------------------------------------------------------------------------


def test_data_on_which_nothing_can_be_measured_end_the_search_at_once(bench):
    search = bench.search()
    bench.leave(search.suggest("a"), "failed", Reason.DATA_ERROR, "eval/linear_top1 cannot be measured")
    search.on_trial_complete("a", error=True)
    assert search.suggest("a") == Searcher.FINISHED
    assert isinstance(search.error, DataError)
    assert str(search.error) == "trial 0: eval/linear_top1 cannot be measured"
    assert bench.states() == ["FAIL"]


CHANNELS = {"model.in_chans": {"type": "categorical", "choices": [1, 3]}}


def test_data_that_the_model_decides_on_fail_their_trial_alone(bench):
    search = bench.search(space=CHANNELS)
    bench.leave(search.suggest("a"), "failed", Reason.DATA_ERROR, "none of the images of /data can be read")
    search.on_trial_complete("a", error=True)
    assert (bench.states(), search.error) == (["FAIL"], None)
    assert search.suggest("b")


def test_an_objective_that_cannot_be_measured_ends_any_search_at_once(bench):
    """The trial's worker says so in the outcome, which no later failure replaces."""
    search = bench.search(space=CHANNELS)
    config = search.suggest("a")
    request = AttemptRequest.model_validate_json(config[REQUEST])
    worker = SimpleNamespace(store=Store(request.artifact_uri), request=request)

    def train(_):
        raise ObjectiveNotMeasured("eval/linear_top1 cannot be measured")

    with pytest.raises(ObjectiveNotMeasured) as error:
        do_trial(worker, train)
    later = Outcome(state="failed", reason=Reason.DATA_ERROR, message=str(error.value))
    settle_outcome(worker.store, request.attempt, later)
    search.on_trial_complete("a", error=True)
    assert isinstance(search.error, DataError)
    assert search.suggest("a") == Searcher.FINISHED


def test_once_something_was_measured_a_trial_with_a_data_error_fails_alone(bench):
    search = bench.search()
    complete(bench, search, "a", search.suggest("a"), 0.5)
    bench.leave(search.suggest("a"), "failed", Reason.DATA_ERROR, "/data/1.png was overwritten")
    search.on_trial_complete("a", error=True)
    assert search.suggest("a")
    assert search.error is None


@pytest.mark.parametrize(
    ("metric", "step", "measured", "refused"),
    [
        (metric_keys.LINEAR_TOP1, 0, {}, True),
        (metric_keys.LINEAR_TOP1, 0, {metric_keys.LINEAR_TOP1: 0.1}, False),
        (metric_keys.LOSS, 0, {}, False),
        (metric_keys.LOSS, 10, {}, True),
        (metric_keys.RECONSTRUCTION_RATIO, 0, {}, False),
    ],
)
def test_a_trial_that_cannot_measure_its_objective_says_so_before_it_trains(metric, step, measured, refused):
    reports = []
    context = TrialContext(run_id="run-s", attempt=1, number=0, metrics=(metric,), epochs=9)
    recorder = TrialRecorder(SimpleNamespace(log=lambda *_: None), context, reports.append)
    evaluated = {metric_keys.RECONSTRUCTION_RATIO: 0.9} | measured
    if refused:
        with pytest.raises(ObjectiveNotMeasured, match=f"objective.metric: {metric} cannot be measured"):
            recorder.log(step, evaluated)
    else:
        recorder.log(step, evaluated)
    assert reports == []


def test_an_evaluation_reports_its_result_alone():
    reports = []
    context = TrialContext(run_id="run-s", attempt=1, number=0, metrics=("eval/mce",), epochs=1, evaluates=True)
    run = SimpleNamespace(log=lambda *_: None, tag=lambda _: None, try_to_send=lambda: None)
    recorder = TrialRecorder(run, context, reports.append)
    recorder.tag({names.TAG_STEPS: "2"})
    for done in (0, 1, 2):
        recorder.log(done, {metric_keys.SAMPLES: float(done), "eval/robustness_top1": 0.5})
    assert reports == []
    recorder.log(2, {"eval/robustness_top1": 0.5, "eval/mce": 0.4})
    assert [(report["eval/mce"], report[metric_keys.EPOCH]) for report in reports] == [(0.4, 1.0)]


# --- every end --------------------------------------------------------------------------------------------------------


def test_a_trial_that_the_scheduler_stopped_is_pruned_with_its_last_value(bench):
    search = bench.search()
    search.suggest("a")
    search.on_trial_result("a", evaluation(1, 0.3))
    search.running["a"].stop_reason = "Stopped by asha"
    search.on_trial_complete("a", evaluation(2, 0.2))
    (trial,) = bench.trials()
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.3, 2: 0.2})
    assert trial.user_attrs[names.TRIAL_MESSAGE] == "Stopped by asha"


def test_a_trial_with_an_error_of_its_own_has_failed_with_its_reason(bench):
    search = bench.search()
    config = search.suggest("a")
    bench.leave(config, "failed", Reason.LOSS_NOT_FINITE, "the loss was not finite")
    search.on_trial_complete("a", error=True)
    (trial,) = bench.trials()
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs[names.TRIAL_REASON] == Reason.LOSS_NOT_FINITE
    assert bench.runs.ended == {"run-0": "FAILED"}


def test_a_trial_whose_process_was_killed_goes_on_as_often_as_it_may(bench):
    search = bench.search()
    search.suggest("a")
    search.on_trial_result("a", evaluation(1, 0.3))
    search.on_trial_complete("a", error=True)
    again = search.suggest("b")
    assert bench.number(again) == 0
    assert AttemptRequest.model_validate_json(again[REQUEST]).attempt == 2
    search.on_trial_result("b", evaluation(1, 0.3))  # measured once more, and known already
    search.on_trial_complete("b", error=True)
    (trial,) = bench.trials()
    assert (trial.state, trial.user_attrs[names.TRIAL_REASON]) == (TrialState.FAIL, Reason.WORKER_FAILED)
    assert trial.user_attrs[names.TRIAL_ATTEMPTS] == [1, 2]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_a_trial_that_died_after_its_last_evaluation_has_that_value_when_it_succeeds(bench, several, restart):
    """It resumes at its last step, so it reports nothing more."""
    parts = FRONT if several else {}
    measured = evaluation(9, 0.5) | {metric_keys.RECONSTRUCTION_RATIO: 0.7}
    search = bench.search(**parts)
    search.suggest("a")
    search.on_trial_result("a", measured)
    if restart:
        search = bench.search(**parts)
    else:
        search.on_trial_complete("a", error=True)
    bench.leave(search.suggest("b"))
    search.on_trial_complete("b", {"done": True})
    assert search.error is None
    (trial,) = bench.trials()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.5, 0.7] if several else [0.5])


def test_a_trial_whose_last_evaluation_was_stored_in_part_has_that_value_when_it_succeeds(bench, monkeypatch):
    search = bench.search()
    search.suggest("a")

    def lost(*_):
        raise StorageError("the studies' database was lost")

    monkeypatch.setattr(search.record.study._storage, "set_trial_intermediate_value", lost)
    search.on_trial_result("a", evaluation(9, 0.5))
    assert isinstance(search.error, StorageError)
    search = bench.search()
    bench.leave(search.suggest("b"))
    search.on_trial_complete("b", {"done": True})
    assert [trial.values for trial in bench.trials()] == [[0.5]]


def test_a_trial_that_succeeds_without_any_evaluation_fails_alone(bench):
    search = bench.search()
    bench.leave(search.suggest("a"))
    search.on_trial_complete("a", {"done": True})
    (trial,) = bench.trials()
    assert (trial.state, trial.user_attrs[names.TRIAL_REASON]) == (TrialState.FAIL, Reason.WORKER_FAILED)
    assert f"no evaluation with {METRIC} is known" in trial.user_attrs[names.TRIAL_MESSAGE]
    assert search.error is None
    assert search.suggest("b")


def test_pauses_and_killed_drivers_are_no_failures_of_a_trial(bench):
    for paused in (True, False, True):
        search = bench.search()
        config = search.suggest("a")
        if paused:
            bench.wanted = "pause"
            bench.leave(config, "paused")
            search.on_trial_complete("a", {})
            bench.wanted = None
    search = bench.search()
    for _ in range(2):
        assert bench.states() == ["RUNNING"]
        assert bench.number(search.suggest("a")) == 0
        search.on_trial_complete("a", error=True)
    assert bench.states() == ["FAIL"], "its process died twice, and retry.max_failures is 1"


@pytest.mark.parametrize("reason", [Reason.PREEMPTED, Reason.NODE_LOST])
def test_a_trial_that_lost_its_node_resumes_however_often(bench, reason):
    search = bench.search()
    for _ in range(4):
        bench.leave(search.suggest("a"), "failed", reason, "the node was taken away")
        search.on_trial_complete("a", error=True)
    assert bench.number(search.suggest("a")) == 0
    assert names.TRIAL_FAILURES not in bench.trials()[0].user_attrs


@on_both
def test_failures_of_a_trial_count_across_attempts(bench):
    for state in ("RUNNING", "FAIL"):
        search = bench.search()
        bench.leave(search.suggest("a"), "failed", Reason.STORAGE_ERROR, "the bucket is unreachable")
        search.on_trial_complete("a", error=True)
        assert bench.states() == [state]
    assert bench.trials()[0].user_attrs[names.TRIAL_FAILURES] == 2


def test_more_failed_trials_than_allowed_end_the_search_and_say_why(bench):
    search = bench.search()
    for _ in range(2):
        bench.leave(search.suggest("a"), "failed", Reason.LOSS_NOT_FINITE, "the loss was not finite")
        search.on_trial_complete("a", error=True)
    assert search.suggest("a") == Searcher.FINISHED
    outcome = search.outcome()
    assert (outcome.state, outcome.reason) == ("failed", Reason.TRIALS_FAILED)
    assert outcome.message == (
        "2 trials failed, and budget.max_failed is 1. The last was trial 1: the loss was not finite"
    )


def test_a_trial_that_was_stopped_by_hand_is_pruned_and_the_others_go_on(bench):
    search = bench.search()
    config = search.suggest("a")
    search.on_trial_result("a", evaluation(1, 0.3))
    bench.channel.orders = SearchOrders(trials=6, concurrency=2, max_failed=1, stopped=(0,))
    bench.leave(config, "cancelled")
    search.on_trial_complete("a", evaluation(1, 0.3))
    (trial,) = bench.trials()
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.3)
    assert trial.user_attrs[names.TRIAL_REASON] == Reason.STOPPED_BY_USER
    assert search.suggest("b")


def test_a_trial_that_left_before_it_measured_anything_is_pruned_without_a_value(bench):
    search = bench.search()
    scheduler = make_scheduler(SearchSpec.parse(SPEC), search)
    config, trial = search.suggest("t"), Named("t")
    scheduler.on_trial_add(None, trial)
    bench.channel.orders = SearchOrders(trials=6, concurrency=2, max_failed=1, stopped=(0,))
    bench.leave(config, "cancelled")
    assert scheduler.on_trial_result(None, trial, {"done": True}) == TrialScheduler.CONTINUE
    search.on_trial_result("t", {"done": True})
    search.on_trial_complete("t", {"done": True})
    assert [(trial.state, trial.value) for trial in bench.trials()] == [(TrialState.PRUNED, None)]


def test_a_cancelled_search_leaves_nothing_open(bench):
    search = bench.search()
    config = search.suggest("a")
    bench.wanted = "cancel"
    assert search.suggest("b") is None
    bench.leave(config, "cancelled")
    search.on_trial_complete("a", {})
    assert search.suggest("b") == Searcher.FINISHED
    assert (bench.states(), search.outcome().state) == (["PRUNED"], "cancelled")


# --- the next attempt -------------------------------------------------------------------------------------------------


def test_paused_trials_go_on_under_their_numbers(bench):
    search = bench.search()
    first, second = search.suggest("a"), search.suggest("b")
    bench.wanted = "pause"
    for name, config in (("a", first), ("b", second)):
        bench.leave(config, "paused")
        search.on_trial_complete(name, {})
    assert (bench.states(), search.outcome().state) == (["RUNNING", "RUNNING"], "paused")
    bench.wanted = None
    resumed = bench.search()
    assert [bench.number(resumed.suggest(name)) for name in "ab"] == [0, 1]
    assert bench.states() == ["RUNNING", "RUNNING"]


def test_a_pause_of_which_trials_hear_first_begins_no_other_trial(bench):
    search = bench.search()
    config = search.suggest("a")
    bench.trial_action = "pause"
    bench.leave(config, "paused")
    search.on_trial_complete("a", {})
    assert search.suggest("b") == Searcher.FINISHED
    assert (bench.states(), search.outcome().state) == (["RUNNING"], "paused")


@on_both
def test_after_a_killed_driver_the_same_trials_go_on_and_each_ends_once(bench):
    for attempt in range(3):
        search = bench.search()  # nobody said goodbye
        running = {name: search.suggest(name) for name in "ab"}
        if attempt == 1:
            complete(bench, search, "a", running["a"], 0.5)
    search = bench.search()
    assert bench.states() == ["COMPLETE", "RUNNING", "RUNNING"]
    while (config := search.suggest("x")) != Searcher.FINISHED:
        complete(bench, search, "x", config, 0.5)
    assert bench.states() == ["COMPLETE"] * 6


@on_both
def test_nothing_of_the_database_is_in_what_ray_tune_stores(bench):
    search = bench.search()
    assert copy.deepcopy(search) is search
    assert bench.url.encode() not in pickle.dumps(search)


def test_a_sampler_that_begins_again_does_not_draw_the_same(bench):
    first = bench.search().suggest("a")
    bench.channel.orders = SearchOrders(trials=6, concurrency=3, max_failed=1)
    search = bench.search()
    search.suggest("a")
    new = search.suggest("b")
    rates = [AttemptRequest.model_validate_json(config[REQUEST]).spec.optimization.base_lr for config in (first, new)]
    assert rates[0] != rates[1]


# --- what is kept, and repeats ----------------------------------------------------------------------------------------


def test_only_the_best_trials_keep_their_checkpoints(bench):
    search = bench.search(keep=2)
    for value in (0.1, 0.5, 0.2, 0.4):
        config = search.suggest("a")
        (bench.checkpoints(config) / "a1" / "00000009").mkdir(parents=True)
        complete(bench, search, "a", config, value)
    assert bench.kept() == [1, 3]


def end_with(bench, search, values):
    """A trial that ends with values of two objectives."""
    config = search.suggest("a")
    (bench.checkpoints(config) / "a1" / "00000009").mkdir(parents=True)
    measured = dict(zip((METRIC, metric_keys.RECONSTRUCTION_RATIO), values, strict=True))
    bench.leave(config)
    search.on_trial_complete("a", measured | {metric_keys.EPOCH: 9})


FRONT = {
    "objective": [{"metric": METRIC}, {"metric": metric_keys.RECONSTRUCTION_RATIO}],
    "scheduler": {"name": "none"},
    "budget": {"trials": 9, "concurrency": 1},
}


def test_trials_on_the_pareto_front_keep_their_checkpoints_until_they_are_beaten(bench):
    search, kept = bench.search(**FRONT, keep=1), []
    for values in ((0.5, 0.5), (0.9, 0.9), (0.4, 0.6), (0.1, 0.1), (0.2, 0.1), (0.95, 0.05)):
        end_with(bench, search, values)
        kept.append(bench.kept())
    assert kept == [[0], [0, 1], [0, 1], [0, 1, 3], [0, 1, 4], [5]]


def test_a_front_smaller_than_what_is_kept_is_filled_up_with_the_next_best(bench):
    search = bench.search(**FRONT, keep=2)
    for values in ((0.5, 0.5), (0.4, 0.6), (0.3, 0.7)):
        end_with(bench, search, values)
    assert bench.kept() == [0, 1]


def test_a_new_attempt_removes_the_checkpoints_of_trials_that_are_beaten_now(bench):
    for value in (0.1, 0.5, 0.2, 0.4):
        search = bench.search(keep=2)
        config = search.suggest("a")
        (bench.checkpoints(config) / "a1" / "00000009").mkdir(parents=True)
        complete(bench, search, "a", config, value)
    assert bench.kept() == [1, 3]


@on_both
def test_the_best_are_repeated_with_other_seeds_and_nothing_is_better_for_it(bench):
    search = bench.search(budget={"trials": 2, "concurrency": 1}, repeats={"best": 1, "seeds": 2})
    for value in (0.1, 0.5):
        complete(bench, search, "a", search.suggest("a"), value)
    seeds = []
    while (config := search.suggest("a")) != Searcher.FINISHED:
        seeds.append(AttemptRequest.model_validate_json(config[REQUEST]).spec.seed)
        complete(bench, search, "a", config, 0.9)
    repeats = bench.trials()[2:]
    assert seeds == [1, 2]
    assert [trial.user_attrs[names.TRIAL_REPEAT_OF] for trial in repeats] == [1, 1]
    assert {trial.params[RATE] for trial in repeats} == {bench.trials()[1].params[RATE]}
    assert record.ranked(bench.trials(), SearchSpec.parse(SPEC))[0].number == 1


def test_evaluations_as_trials_read_the_same_source_and_are_repeated_with_seeds_that_none_has_had(bench):
    score, rate = "eval/finetune_top1", "protocols.finetune.base_lr"
    base = {
        "kind": "evaluate",
        "backbone": {"job": "job-a"},
        "dataset": {"uri": "builtin://digits"},
        "protocols": [{"name": "finetune"}],
        "seeds": 3,
        "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
    }
    parts = {"base": base, "space": {rate: {"type": "float", "low": 1e-3, "high": 1e-2}}}
    parts |= {"objective": {"metric": score}, "scheduler": {"name": "none"}, "keep": 1}
    source = Source(job_id="job-a", run_id="run-a", artifact_uri="/a")
    search = bench.search(source, **parts, budget={"trials": 2, "concurrency": 1}, repeats={"best": 1, "seeds": 2})
    seeds = []
    for value in (0.1, 0.5, 0.4, 0.4):
        config = search.suggest("a")
        request = AttemptRequest.model_validate_json(config[REQUEST])
        assert (request.source, request.spec.baselines) == (source, ())
        assert TrialContext.model_validate_json(config[TRIAL]).evaluates
        seeds.append(request.spec.seed)
        (Path(request.artifact_uri) / names.TRAININGS / "finetune-backbone-0").mkdir(parents=True)
        result = {score: value, metric_keys.EPOCH: 1.0}
        search.on_trial_result("a", result)
        bench.leave(config)
        search.on_trial_complete("a", result)
    assert seeds == [0, 0, 3, 6]
    assert [trial.value for trial in bench.trials()] == [0.1, 0.5, 0.4, 0.4]
    assert not (bench.root / "trial-0" / names.TRAININGS).exists()


def trained(bench, trials, **parts):
    """A search of so many trials that is run to its end: the values of its trials, of which 0 would be the best."""
    search, values = bench.search(**TWO | parts, budget={"trials": trials, "concurrency": 1}), []
    while (config := search.suggest("a")) != Searcher.FINISHED:
        optimization = AttemptRequest.model_validate_json(config[REQUEST]).spec.optimization
        values.append(-abs(np.log10(optimization.base_lr / 3e-4)) - 5 * abs(optimization.weight_decay - 0.05))
        (bench.checkpoints(config) / "a1" / "00000009").mkdir(parents=True)
        complete(bench, search, "a", config, values[-1])
    assert search.outcome() == Outcome(state="succeeded")
    return values


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "cmaes"])
def test_a_search_that_learns_from_an_earlier_one_runs_all_its_trials_and_leaves_the_earlier_one_alone(
    bench, algorithm
):
    parts = {"algorithm": {"name": algorithm}, "keep": 2}
    benches = [Bench(bench.root / name, bench.url, f"job-{name}") for name in ("earlier", "cold", "warm")]
    for each in benches:
        each.root.mkdir()
    earlier, cold, warm = benches
    trained(earlier, 14, **parts)
    before = earlier.trials(), earlier.kept()
    without = trained(cold, 6, **parts)
    learned = trained(warm, 6, warm_start=["job-earlier"], **parts)
    assert (earlier.trials(), earlier.kept()) == before
    assert warm.states() == ["COMPLETE"] * 6
    assert warm.kept() == sorted(np.argsort(learned)[-2:])
    assert np.mean(learned) > np.mean(without)


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_a_search_learns_from_those_earlier_trials_whose_values_it_could_choose_too(bench, caplog, algorithm):
    """The earlier one had a wider range and one choice more."""
    wide = {RATE: SPEC["space"][RATE], DECAY: {"type": "categorical", "choices": [0.2, 0.1, 0.05]}}
    narrow = {RATE: {**SPEC["space"][RATE], "low": 1e-4}, DECAY: {"type": "categorical", "choices": [0.1, 0.2]}}
    benches = [Bench(bench.root / name, bench.url, f"job-{name}") for name in ("earlier", "cold", "warm")]
    for each in benches:
        each.root.mkdir()
    earlier, cold, warm = benches
    trained(earlier, 14, algorithm={"name": "random"}, space=wide)
    usable = [t for t in earlier.trials() if t.params[RATE] >= 1e-4 and t.params[DECAY] != 0.05]
    assert 0 < len(usable) < 14
    parts = {"algorithm": {"name": algorithm}, "space": narrow}
    without = trained(cold, 6, **parts)
    with caplog.at_level(logging.INFO, logger="rcmae"):
        learned = trained(warm, 6, warm_start=["job-earlier"], **parts)
    assert f"learns from {len(usable)} of the 14 trials of job-earlier" in caplog.text
    assert warm.states() == ["COMPLETE"] * 6
    assert np.mean(learned) > np.mean(without)


@pytest.mark.usefixtures("bench")
def test_a_sampler_sees_earlier_trials_and_its_own_in_one_sequence_of_numbers(monkeypatch):
    """Samplers go by the number: to leave out the trial that they draw for, and to tell which trials are new."""
    drawn = []

    class Recorder(optuna.samplers.RandomSampler):
        def __init__(self, seed, **_):
            super().__init__(seed)

        def sample_independent(self, study, trial, *parameter):
            drawn.append((trial.number, [each.number for each in study.get_trials()]))
            return super().sample_independent(study, trial, *parameter)

    monkeypatch.setattr(study, "TPESampler", Recorder)
    spec = SearchSpec.parse(SPEC | {"algorithm": {"name": "tpe"}})

    def begin(trials: SearchRecord) -> int:
        trial = trials.create()
        trials.store_point(trial, Drawing(trials, spec, []).point(trial))
        return trial.number

    for name in ("job-one", "job-other"):
        earlier = SearchRecord(spec, name, 1)
        for state, values in ((TrialState.COMPLETE, [0.5]), (TrialState.FAIL, None), (TrialState.PRUNED, None)):
            earlier.end(begin(earlier), state, values)
        begin(earlier)  # still running
    drawn.clear()
    warm = SearchRecord(spec.model_copy(update={"warm_start": ("job-one", "job-other")}), "job-s", 1)
    assert [begin(warm) for _ in range(2)] == [0, 1]
    assert drawn == [(4, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4, 5])], "four earlier trials have been measured"


# --- schedulers -------------------------------------------------------------------------------------------------------


def simulated(curves: dict[int, list[float]], order: list[tuple[int, int]], grace: int, factor: int) -> dict[int, int]:
    """ASHA's rule by the book: at a rung, whoever is below the top 1/factor of those that came so far is stopped.

    Gives the epoch at which each trial was stopped.
    """
    rungs: dict[int, list[float]] = {}
    epoch = grace
    while epoch <= 9:
        rungs[epoch] = []
        epoch *= factor
    stopped: dict[int, int] = {}
    for number, epoch in order:
        if number in stopped or epoch not in rungs:
            continue
        value, seen = curves[number][epoch - 1], rungs[epoch]
        if seen and value < np.nanpercentile(seen, (1 - 1 / factor) * 100) and epoch < 9:
            stopped[number] = epoch
        seen.append(value)
    return stopped


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("restart", [False, True])
def test_asha_decides_by_its_rule_also_after_a_new_beginning(bench, seed, restart):
    random = Random(seed)
    curves = {number: [random.random() for _ in range(9)] for number in range(12)}
    spec = SearchSpec.parse(SPEC | {"budget": {"trials": 12, "concurrency": 12}})
    bench.channel.orders = SearchOrders(trials=12, concurrency=12, max_failed=1)
    search = bench.search(budget={"trials": 12, "concurrency": 12})
    scheduler = make_scheduler(spec, search)
    alive = _begin(search, scheduler, 12)
    order, at, stopped, halfway = [], dict.fromkeys(range(12), 0), {}, 0
    while alive:
        number = random.choice(sorted(alive))
        trial, config = alive[number]
        at[number] += 1
        result = evaluation(at[number], curves[number][at[number] - 1])
        order.append((number, at[number]))
        if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            stopped[number] = at[number]
            search.on_trial_complete(trial.trial_id, result)
            del alive[number]
        else:
            search.on_trial_result(trial.trial_id, result)
            if at[number] == 9:
                bench.leave(config)
                search.on_trial_complete(trial.trial_id, result)
                del alive[number]
        halfway += 1
        if restart and halfway == 25:
            search = bench.search(budget={"trials": 12, "concurrency": 12})
            scheduler = make_scheduler(spec, search)
            alive = _begin(search, scheduler, len(alive))
    assert stopped == simulated(curves, order, grace=1, factor=3)
    ends = {trial.number: trial.state.name for trial in bench.trials()}
    assert ends == {number: "PRUNED" if number in stopped else "COMPLETE" for number in range(12)}


def _begin(search, scheduler, count):
    alive = {}
    for index in range(count):
        trial = Named(f"t{index}")
        config = search.suggest(trial.trial_id)
        scheduler.on_trial_add(None, trial)
        alive[Bench.number(config)] = (trial, config)
    return alive


def test_median_stops_what_is_worse_than_the_median_of_the_others(bench):
    spec = SearchSpec.parse(SPEC | {"scheduler": {"name": "median"}})
    bench.channel.orders = SearchOrders(trials=6, concurrency=6, max_failed=1)
    search = bench.search(scheduler={"name": "median"})
    scheduler = make_scheduler(spec, search)
    alive = _begin(search, scheduler, 5)
    decisions = []
    for number, value in enumerate((0.5, 0.6, 0.7, 0.8, 0.1)):
        trial, _ = alive[number]
        decisions.append(scheduler.on_trial_result(None, trial, evaluation(2, value)))
        search.on_trial_result(trial.trial_id, evaluation(2, value))
    assert decisions == [TrialScheduler.CONTINUE] * 4 + [TrialScheduler.STOP]
    assert "median" in search.running["t4"].stop_reason


@pytest.mark.parametrize(("name", "values"), [("asha", (0.1, 0.9, 0.7)), ("median", (0.1, 0.2, 0.9, 0.3))])
def test_a_trial_that_began_again_counts_once(bench, name, values):
    """The last value is good enough, unless the one before it counts twice."""
    parts = {"scheduler": {"name": name}, "budget": {"trials": 6, "concurrency": 6, "max_failed": 1}}
    search = bench.search(**parts)
    scheduler = make_scheduler(SearchSpec.parse(SPEC | parts), search)
    *earlier, last = values
    alive = _begin(search, scheduler, len(earlier))
    for number, value in enumerate(earlier):
        trial, _ = alive[number]
        assert scheduler.on_trial_result(None, trial, evaluation(1, value)) == TrialScheduler.CONTINUE
        search.on_trial_result(trial.trial_id, evaluation(1, value))
    died, again = alive[len(earlier) - 1][0], Named("again")
    search.on_trial_complete(died.trial_id, error=True)
    assert bench.number(search.suggest(again.trial_id)) == len(earlier) - 1
    scheduler.on_trial_add(None, again)
    repeated = evaluation(1, earlier[-1])  # it had no checkpoint of that epoch yet
    assert scheduler.on_trial_result(None, again, repeated) == TrialScheduler.CONTINUE
    search.on_trial_result(again.trial_id, repeated)
    new = Named("new")
    search.suggest(new.trial_id)
    scheduler.on_trial_add(None, new)
    assert scheduler.on_trial_result(None, new, evaluation(1, last)) == TrialScheduler.CONTINUE


# --- what a trial costs -----------------------------------------------------------------------------------------------


class Costs:
    """What a search asks of its database: statements, trials read, and characters written."""

    def __init__(self, search, monkeypatch) -> None:
        self.statements = self.trials = self.characters = 0
        monkeypatch.setattr(searcher, "STORE_SECONDS", math.inf)  # what is due by time
        event.listen(search.record.study._storage._backend.engine, "before_cursor_execute", self._count)
        build = RDBStorage._build_frozen_trial_from_trial_model

        def built(storage, model):
            self.trials += 1
            return build(storage, model)

        monkeypatch.setattr(RDBStorage, "_build_frozen_trial_from_trial_model", built)

    def _count(self, connection, cursor, statement, parameters, context, many):  # noqa: ARG002 - as SQLAlchemy calls it
        self.statements += 1
        self.characters += len(str(parameters))

    def spent(self):
        """Since this was asked last."""
        spent = np.array([self.statements, self.trials, self.characters])
        self.statements = self.trials = self.characters = 0
        return spent


def test_a_trial_costs_the_database_the_same_however_many_there_were(bench, monkeypatch):
    search = bench.search(budget={"trials": 30, "concurrency": 1}, algorithm={"name": "tpe"})
    costs, spent = Costs(search, monkeypatch), []
    while (config := search.suggest("a")) != Searcher.FINISHED:
        (bench.checkpoints(config) / "a1" / "00000009").mkdir(parents=True)
        complete(bench, search, "a", config, 0.5)
        spent.append(costs.spent())
    early, late = np.max(spent[10:13], axis=0), np.max(spent[27:], axis=0)
    assert np.all(late <= early + np.array([0, 0, 40])), "but for the digits of times"


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_trial_costs_the_database_the_same_however_many_wait(bench, monkeypatch, algorithm):
    spent = []
    for waiting in (3, 30):
        each = Bench(bench.root / str(waiting), bench.url, f"job-{waiting}")
        each.root.mkdir()
        search = each.search(budget={"trials": 100, "concurrency": 1}, algorithm={"name": algorithm})
        study_of_others = each.study()
        for _ in range(waiting):
            study_of_others.enqueue_trial({})
        costs = Costs(search, monkeypatch)
        complete(each, search, "a", search.suggest("a"), 0.5)
        spent.append(costs.spent())
    assert np.all(spent[1] <= spent[0] + np.array([0, 0, 40])), "but for the digits of numbers and times"


# --- Ray Tune's folder ------------------------------------------------------------------------------------------------


def test_the_folder_of_ray_tunes_records_stays_while_the_search_runs(bench, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(bench.root))
    monkeypatch.setattr(run, "TrialRuns", lambda *_: bench.runs)
    monkeypatch.setattr(run, "SearchChannel", lambda *_: bench.channel)
    listener = SimpleNamespace(start=lambda: None, stop=lambda: None, requested_action=lambda: None)
    monkeypatch.setattr(run, "CommandListener", lambda *_: listener)
    folders = []

    def tune(spec, search, work, folder):  # noqa: ARG001 - as the real one
        before = time.time() - 2 * temporary.SWEEP_AGE_SECONDS
        os.utime(folder, (before, before))
        temporary.sweep_temporary_folders()
        assert Path(folder).is_dir()
        folders.append(Path(folder))

    monkeypatch.setattr(run, "_tune", tune)
    spec = SearchSpec.parse(SPEC)
    request = AttemptRequest(
        job_id="job-s", attempt=1, run_id="run-s", tracking_uri="x", artifact_uri=str(bench.root), spec=spec
    )
    assert run.run_search(request, spec, lambda _: Outcome(state="succeeded")).state == "succeeded"
    assert len(folders) == 1
    assert not folders[0].exists()


@pytest.mark.parametrize("algorithm", ["tpe", "random", "qmc", "cmaes", "gp"])
def test_every_algorithm_fills_a_budget(bench, algorithm):
    space = {RATE: SPEC["space"][RATE], "optimization.weight_decay": {"type": "float", "low": 0, "high": 0.2}}
    search = bench.search(space=space, algorithm={"name": algorithm}, budget={"trials": 12, "concurrency": 1})
    points = []
    while (config := search.suggest("a")) != Searcher.FINISHED:
        optimization = AttemptRequest.model_validate_json(config[REQUEST]).spec.optimization
        points.append((optimization.base_lr, optimization.weight_decay))
        complete(bench, search, "a", config, 1 - optimization.weight_decay)
    assert len(set(points)) == 12
    assert bench.states() == ["COMPLETE"] * 12

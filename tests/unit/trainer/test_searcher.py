"""The searcher: what it hands out, what it makes of every end, and what the next attempt of a search goes on with."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from trainer.attempt.outcome import write_outcome
from trainer.protocol import names
from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.search import study
from trainer.search.schedulers import make_scheduler
from trainer.search.searcher import StudySearch
from trainer.search.trial import REQUEST, TRIAL, TrialContext
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

    def search(self, **parts) -> StudySearch:
        """The next attempt's."""
        self.attempts += 1
        spec = SearchSpec.parse(SPEC | parts)
        request = AttemptRequest(
            job_id=self.job_id,
            attempt=self.attempts,
            run_id="run-s",
            tracking_uri="x",
            artifact_uri=str(self.root),
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
    bench.leave(config, "failed", Reason.DATA_ERROR, "no images in /data")
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
    bench.leave(search.suggest("a"), "failed", Reason.DATA_ERROR, "no images in /data")
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
    bench.leave(search.suggest("a"), "failed", Reason.DATA_ERROR, "no images in /data")
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


def test_more_failed_trials_than_allowed_end_the_search_and_say_why(bench):
    search = bench.search()
    for _ in range(2):
        bench.leave(search.suggest("a"), "failed", Reason.DATA_ERROR, "no images in /data")
        search.on_trial_complete("a", error=True)
    assert search.suggest("a") == Searcher.FINISHED
    outcome = search.outcome()
    assert (outcome.state, outcome.reason) == ("failed", Reason.TRIALS_FAILED)
    assert outcome.message == "2 trials failed, and budget.max_failed is 1. The last was trial 1: no images in /data"


def test_a_trial_that_was_stopped_by_hand_is_pruned_and_the_others_go_on(bench):
    search = bench.search()
    config = search.suggest("a")
    search.on_trial_result("a", evaluation(1, 0.3))
    bench.channel.orders = SearchOrders(trials=6, concurrency=2, max_failed=1, stopped=(0,))
    bench.leave(config, "cancelled")
    search.on_trial_complete("a", evaluation(1, 0.3))
    (trial,) = bench.trials()
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.3)
    assert trial.user_attrs[names.TRIAL_REASON] == Reason.CANCELLED_BY_USER
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
    assert study.ranked(bench.trials(), SearchSpec.parse(SPEC).objectives[0])[0].number == 1


DECAY = "optimization.weight_decay"
TWO = {"space": {RATE: SPEC["space"][RATE], DECAY: {"type": "float", "low": 0, "high": 0.2}}}


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
    spec, storage = SearchSpec.parse(SPEC | {"algorithm": {"name": "tpe"}}), study.connect()
    for name in ("job-one", "job-other"):
        earlier = study.open_study(spec, name, storage)
        for state, values in ((TrialState.COMPLETE, [0.5]), (TrialState.FAIL, None), (TrialState.PRUNED, None)):
            study.tell(earlier, study.ask(earlier, spec)[0].number, state, values)
        study.ask(earlier, spec)  # still running
    drawn.clear()
    warm = study.open_study(spec.model_copy(update={"warm_start": ("job-one", "job-other")}), "job-s", storage)
    assert [study.ask(warm, spec)[0].number for _ in range(2)] == [0, 1]
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

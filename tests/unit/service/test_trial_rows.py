"""Trials read as rows are what Optuna itself reads, on both databases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState, create_trial
from postgres_server import PostgresServer

from service.adapters.trial_rows import RowStorage

Storage = TypeVar("Storage", bound=RDBStorage)

SPACE = {
    "optimization.base_lr": FloatDistribution(1e-5, 1e-2, log=True),
    "method.mask_ratio": FloatDistribution(0.5, 0.9, step=0.05),
    "optimization.warmup_epochs": IntDistribution(0, 10),
    "masking.name": CategoricalDistribution(["random", None, True, 3, 0.5]),
}
POINTS = [
    {"optimization.base_lr": 1e-3, "method.mask_ratio": 0.75, "optimization.warmup_epochs": 3, "masking.name": None},
    {"masking.name": True, "optimization.base_lr": 1e-4},  # the others are under conditions; and another order
    {"optimization.warmup_epochs": 10, "masking.name": 0.5},
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def optunas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RDBStorage]:
    if request.param == "sqlite":
        yield from opened(RDBStorage(f"sqlite:///{tmp_path_factory.mktemp('studies')}/studies.db"))
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        yield from opened(RDBStorage(postgres.url("trial_rows")))


@pytest.fixture(scope="module")
def ours(optunas: RDBStorage) -> Iterator[RowStorage]:
    yield from opened(RowStorage(optunas.url))


def opened(storage: Storage) -> Iterator[Storage]:
    yield storage
    storage.engine.dispose()


def study_of(storage: RDBStorage, *directions: str) -> Study:
    """With a trial of every sort."""
    study = optuna.create_study(storage=storage, directions=directions or ["maximize"])
    ends = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    for number, state in enumerate(ends):
        point = POINTS[number % len(POINTS)]
        several = [math.inf, -2.5][: len(directions) or 1]
        study.add_trial(
            create_trial(
                state=state,
                values=several if state is TrialState.COMPLETE else None,
                params=point,
                distributions={name: SPACE[name] for name in point},
                intermediate_values={4: 0.5, 1: math.inf, 2: -math.inf, 3: 1e-300} if number % 2 else {},
                user_attrs={"run": "a" * 32, "metrics": {"eval/knn": 0.25, "of": [1, None]}, "note": "Straße"},
                system_attrs={"fixed_params": {"x": 1}} if state is TrialState.FAIL else {},
            )
        )
    running = study.ask({"optimization.base_lr": SPACE["optimization.base_lr"]})
    if not directions:
        running.report(0.5, 1)
    study.enqueue_trial({"optimization.base_lr": 2e-3}, user_attrs={"by": "alice"})
    return study


@pytest.mark.parametrize("directions", [(), ("maximize", "minimize")])
def test_they_are_optunas_own(optunas: RDBStorage, ours: RowStorage, directions: tuple[str, ...]) -> None:
    study_of(optunas, *directions)  # another's trials are none of it
    study_id = study_of(optunas, *directions)._study_id
    theirs = optunas.get_all_trials(study_id)
    assert len(theirs) == 6
    assert ours.get_all_trials(study_id) == theirs
    assert [list(trial.params) for trial in ours.get_all_trials(study_id)] == [list(trial.params) for trial in theirs]
    over = (TrialState.COMPLETE, TrialState.FAIL)
    assert ours.get_all_trials(study_id, states=over) == optunas.get_all_trials(study_id, states=over)


def test_a_value_that_is_none_is_one(optunas: RDBStorage, ours: RowStorage) -> None:
    study = optuna.create_study(storage=optunas)
    study.ask().report(math.nan, 1)
    (found,) = ours.get_all_trials(study._study_id)
    assert math.isnan(found.intermediate_values[1])


def test_only_what_may_have_changed_is_read_again(optunas: RDBStorage, ours: RowStorage) -> None:
    """As Optuna's own memory asks: what was unfinished, and what came after the last that was finished."""
    mine, theirs = study_of(optunas), optunas
    known = theirs.get_all_trials(mine._study_id)
    early, last = known[1]._trial_id, known[3]._trial_id
    found = ours._get_trials(mine._study_id, None, {early}, last)
    assert found == theirs._get_trials(mine._study_id, None, {early}, last)
    assert [trial.number for trial in found] == [1, 4, 5]


def test_a_loaded_study_follows_its_trials(optunas: RDBStorage, ours: RowStorage) -> None:
    written = study_of(optunas)
    seen = optuna.load_study(study_name=written.study_name, storage=ours)
    assert seen.get_trials() == written.get_trials()
    written.tell(4, 0.75)
    written.tell(written.ask(SPACE).number, state=TrialState.PRUNED)
    assert seen.get_trials() == written.get_trials()
    assert seen.best_trial.number == written.best_trial.number


def test_a_study_that_is_gone_is_said_to_be(ours: RowStorage) -> None:
    with pytest.raises(KeyError):
        ours.get_all_trials(1_000_000)

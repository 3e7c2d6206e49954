"""Evaluations shared by ranks give the same numbers; the untrained network is measured once and kept."""

import json
from pathlib import Path

import pytest
import torch
from loops import launch, make_spec
from worlds import on_ranks

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_training_data
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.probes import Probes
from trainer.evaluation.ranks import Ranks, alone
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store

SPEC = make_spec(model={"depth": 1}, evaluation={"probes": "auto"})
LINEAR = {metric_keys.LINEAR_TOP1, metric_keys.LINEAR_TOP1_RANDOM_INIT}
KNN = {metric_keys.KNN_TOP1, metric_keys.KNN_TOP1_RANDOM_INIT}


def evaluated(ranks: Ranks, folder: Path, run: str = "run", spec: PretrainSpec = SPEC) -> dict[str, float]:
    data = open_training_data(spec, DatasetContext(Cache(folder / "cache"), 1, Agreement(1), 0))
    store = Store(str(folder / run))
    evaluator = Evaluator(spec, data, store, folder / "cache", ranks, torch.device("cpu"), False)
    torch.manual_seed(3)
    model = MaskedAutoencoder(spec.model)
    return evaluator.evaluate(model, model, 7)


def test_one_two_and_three_workers_measure_the_same(tmp_path):
    """To the bit: the held-out digits are 179, which is no multiple of a block or of the ranks."""
    expected = evaluated(alone(), tmp_path / "one")
    assert set(expected) == {metric_keys.RECONSTRUCTION_RATIO} | LINEAR | KNN
    for world in (2, 3):
        assert on_ranks(world, tmp_path / str(world), evaluated, tmp_path / str(world)) == [expected] * world
        assert Store(str(tmp_path / str(world) / "run")).names(names.IMAGES) == ["reconstruction_00000007.png"]


@pytest.mark.parametrize(("probes", "keys"), [(["linear"], LINEAR), (["knn"], KNN), (["knn", "linear"], KNN | LINEAR)])
def test_the_probes_that_a_spec_names_are_made(tmp_path, probes, keys):
    spec = make_spec(model={"depth": 1}, evaluation={"probes": probes})
    assert set(evaluated(alone(), tmp_path, spec=spec)) == {metric_keys.RECONSTRUCTION_RATIO} | keys


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Grows with each measurement of a network."""
    calls: list[int] = []
    scores = Probes.scores
    monkeypatch.setattr(Probes, "scores", lambda self, encoder: calls.append(1) or scores(self, encoder))
    return calls


def test_the_untrained_network_is_measured_once_for_a_run_and_for_a_node(tmp_path, measured):
    first = evaluated(alone(), tmp_path)
    assert len(measured) == 2, "the backbone and the untrained network"
    assert evaluated(alone(), tmp_path) == first
    assert len(measured) == 3, "a resumed attempt finds it in the run's folder"
    assert evaluated(alone(), tmp_path, "other") == first
    assert len(measured) == 4, "another job finds it on the node"
    for file in (tmp_path / "cache/untrained").iterdir():
        file.unlink()
    evaluated(alone(), tmp_path, "other")
    assert len(measured) == 5, "and then it is in that job's folder too"
    evaluated(alone(), tmp_path, spec=make_spec(model={"depth": 2}, evaluation={"probes": "auto"}))
    assert len(measured) == 7, "another network is another measurement"
    evaluated(alone(), tmp_path, "seeded", SPEC.model_copy(update={"seed": 5}))
    assert len(measured) == 9, "whose kept scores were removed above"


def test_another_version_of_torch_draws_other_weights_and_measures_again(tmp_path, measured, monkeypatch):
    evaluated(alone(), tmp_path)
    monkeypatch.setattr(torch, "__version__", "0")
    evaluated(alone(), tmp_path)
    assert len(measured) == 4


def test_what_is_kept_says_what_it_is_of_and_is_not_trusted_where_it_is_damaged(tmp_path, measured):
    found = evaluated(alone(), tmp_path)
    kept = tmp_path / "run" / names.UNTRAINED
    assert json.loads(kept.read_text())["scores"] == {
        "linear": found[metric_keys.LINEAR_TOP1_RANDOM_INIT], "knn": found[metric_keys.KNN_TOP1_RANDOM_INIT],
    }  # fmt: skip
    kept.write_text("{")
    for file in (tmp_path / "cache/untrained").iterdir():
        file.write_text("{")
    assert evaluated(alone(), tmp_path) == found
    assert len(measured) == 4


def damaged_on_the_last_rank(ranks: Ranks, folder: Path) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("out of memory")

    if ranks.rank == ranks.world - 1:
        Evaluator._errors = refuse
    evaluated(ranks, folder)


def test_an_error_of_one_rank_ends_the_evaluation_on_all(tmp_path):
    errors = on_ranks(2, tmp_path, damaged_on_the_last_rank, tmp_path)
    assert [(type(error), str(error)) for error in errors] == [(RuntimeError, "out of memory")] * 2


def test_a_resumed_attempt_of_two_workers_uses_what_the_first_has_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RCMAE_CACHE_DIR", str(tmp_path / "cache"))
    spec = make_spec(evaluation={"every_epochs": 1, "probes": "auto"}, resources={"workers": 2})
    launch(spec, tmp_path / "run", preempt_at=2)
    kept = tmp_path / "run" / names.UNTRAINED
    before = kept.stat().st_mtime_ns
    launch(spec, tmp_path / "run", attempt=2)
    assert kept.stat().st_mtime_ns == before

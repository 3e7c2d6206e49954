"""Ready-made searches over the bases that people have."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest

from trainer.spec.base import SpecError
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.ready_searches import READY, ready_search
from trainer.spec.search import SearchSpec

PAPER = {"kind": "pretrain", "dataset": {"uri": "s3://datasets/imagenet/train"}}
DIGITS = {
    "kind": "pretrain",
    "name": "walk",
    "dataset": {"uri": "builtin://digits"},
    "model": {
        "img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4,
        "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4,
    },
    "optimization": {"epochs": 20, "global_batch_size": 160, "base_lr": 3e-3},
    "augmentation": {"hflip": False},
    "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "register_as": "walk",
}  # fmt: skip


def ready_spec(name: str, base=PAPER, **parts) -> SearchSpec:
    return SearchSpec.parse(ready_search(name, base | parts))


def _values(parameter):
    """All of them, or the ends of a range."""
    if parameter.size() is None:
        return parameter.low, parameter.high
    return [parameter.at(index) for index in range(parameter.size())]


@pytest.mark.parametrize("base", [PAPER, DIGITS], ids=["paper", "digits"])
@pytest.mark.parametrize("name", READY)
def test_every_end_of_a_ready_search_is_a_spec(name, base):
    before = copy.deepcopy(base)
    document = ready_search(name, base)
    spec = SearchSpec.parse(document)
    assert base == before
    assert document["base"] == base, "as it was written"
    assert spec.name == f"{name}-{PretrainSpec.parse(base).name}"
    assert spec.objectives[0].metric == "eval/linear_top1"
    assert spec.trials <= spec.budget.trials
    for path, parameter in spec.ordered():
        for value in _values(parameter):
            assert spec.at({path: value}).kind == "pretrain"


def test_trials_are_stopped_only_where_they_were_evaluated_past_the_warm_up():
    assert ready_spec("teacher").grace_epochs == 40, "two evaluations, the paper's warm-up"
    assert ready_spec("learning-rate").grace_epochs == 160, "the longest warm-up that is tried"
    every_30 = {"every_epochs": 30}
    assert ready_spec("masking", evaluation=every_30).grace_epochs == 60
    assert ready_spec("teacher", DIGITS, evaluation={"every_epochs": 5}).grace_epochs == 5
    for name in READY:
        assert ready_spec(name, DIGITS).scheduler.name == "none", "evaluated at their end alone"


def test_the_paper_s_values_lie_within():
    teacher, rate = ready_spec("teacher").space["method.teacher.momentum"], ready_spec("learning-rate").space
    assert 0.996 in teacher.choices
    steps = [1 / (1 - momentum) for momentum in teacher.choices]
    assert all(1.5 < after / before < 5.1 for before, after in pairwise(steps))
    assert (rate["optimization.base_lr"].low, rate["optimization.base_lr"].high) == (1e-5, 1e-3)
    digits = ready_spec("learning-rate", DIGITS).space["optimization.base_lr"]
    assert digits.low < 3e-3 < digits.high, "around the base's own"
    assert ready_spec("masking").size == 9


def test_a_constant_momentum_is_searched_as_one():
    method = {"teacher": {"momentum": 0.996, "final_momentum": 0.996, "schedule": "constant"}}
    trial = ready_spec("teacher", method=method).at({"method.teacher.momentum": 0.9})
    assert trial.method.teacher.final_momentum == 0.9


def test_what_is_no_base_or_no_ready_search_is_refused():
    with pytest.raises(SpecError, match="there are teacher, masking, learning-rate"):
        ready_search("depth", PAPER)
    with pytest.raises(SpecError, match=r"dataset: is required"):
        ready_search("teacher", {"kind": "pretrain"})
    with pytest.raises(SpecError, match="kind"):
        ready_search("teacher", ready_search("teacher", PAPER))

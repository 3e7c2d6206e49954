"""Searches whose trials are evaluations: what their specs mean, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.spec.base import SpecError
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import PromoteSpec
from trainer.spec.space import parse_base

EVALUATION: dict[str, Any] = {
    "kind": "evaluate",
    "backbone": "digits:3",
    "dataset": {"uri": "builtin://digits"},
    "protocols": [{"name": "knn"}, {"name": "finetune", "recipe": "small"}],
    "seeds": 2,
}
CHOICES: dict[str, Any] = {"type": "categorical", "choices": ["mean", "cls"]}
RATE: dict[str, Any] = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}


def evaluations(space: dict[str, Any] | None = None, base: dict[str, Any] | None = None, **over: Any) -> dict[str, Any]:
    document = {"kind": "search", "base": EVALUATION | (base or {}), "objective": {"metric": "eval/finetune_top1"}}
    return document | {"space": space or {"protocols.finetune.base_lr": RATE}} | over


def test_an_evaluation_is_varied_by_the_names_of_its_protocols_and_measures_no_baselines():
    spec = SearchSpec.parse(evaluations({"protocols.finetune.base_lr": RATE, "features.pooling": CHOICES}))
    point = {"protocols.finetune.base_lr": 0.002, "features.pooling": "cls"}
    trial = spec.at(point, seed=5)
    assert isinstance(trial, EvaluateSpec)
    assert (trial.protocols[1].base_lr, trial.protocols[1].epochs, trial.features.pooling) == (0.002, 100, "cls")
    assert (trial.baselines, trial.seed, spec.seeds_of_trial, spec.scheduler.name) == ((), 5, 2, "none")
    assert [path for path in spec.base if path == "baselines"] == []
    assert SearchSpec.parse(evaluations(base={"baselines": ["scratch"]})).at({}).baselines == ("scratch",)
    assert SearchSpec.parse(spec.model_dump(mode="json")) == spec


def test_a_promoted_evaluation_may_be_tested_on_other_images_and_measures_its_baselines():
    spec = SearchSpec.parse(evaluations(base={"held_out": 0.3}))
    promote = PromoteSpec(overrides={"test.uri": "s3://data/test", "protocols.finetune.epochs": 7})
    document = spec.promoted({"protocols.finetune.base_lr": 0.002}, promote, {})
    promoted = EvaluateSpec.parse(document)
    assert (promoted.test.uri, promoted.baselines) == ("s3://data/test", ("random", "scratch"))
    assert (promoted.protocols[1].base_lr, promoted.protocols[1].epochs) == (0.002, 7)


@pytest.mark.parametrize(
    ("document", "field", "text"),
    [
        (evaluations({"protocols.finetun.base_lr": RATE}), "space.protocols.finetun.base_lr", "mean 'finetune'"),
        (evaluations({"protocols.linear.k": RATE}), "space.protocols.linear.k", "it has knn, finetune"),
        (evaluations({"protocols.finetune.lr": RATE}), "space.protocols.finetune.lr", "base_lr"),
        (evaluations({"protocols.finetune": RATE}), "space.protocols.finetune", "is a section"),
        (evaluations({"protocols.finetune.every_epochs": RATE}), "space.protocols.finetune.every_epochs", "not affect"),
        (evaluations({"held_out": RATE}), "space.held_out", "cannot be searched"),
        (evaluations({"backbone": CHOICES}), "space.backbone", "submit a search for each"),
        (evaluations({"seed": RATE}), "space.seed", "luckiest seed"),
        (
            evaluations({"protocols.finetune.drop_path": RATE | {"high": 2.0}}),
            "space.protocols.finetune.drop_path.high",
            "less than 1",
        ),
        (
            evaluations(objective={"metric": "eval/linear_top1"}),
            "objective.metric",
            "the protocols in base give eval/knn_top1, eval/finetune_top1",
        ),
        (evaluations(objective={"metric": "train/loss"}), "objective.metric", "is not measured by the trials"),
        (evaluations(scheduler={"name": "asha"}), "scheduler.name", "known at their end alone: use none"),
        (evaluations(promote={"register_as": "x"}), "promote.register_as", "named in the search's base"),
        (evaluations(base={"kind": "embed"}), "base.kind", "must be pretrain or evaluate"),
        (evaluations(base={"held_outt": 1}), "base.held_outt", "did you mean 'held_out'"),
    ],
)
def test_what_a_search_over_evaluations_cannot_do_is_refused_by_field(document, field, text):
    with pytest.raises(SpecError) as error:
        SearchSpec.parse(document)
    (problem,) = error.value.problems
    assert (problem.field, text in problem.message) == (field, True), problem


@pytest.mark.parametrize(
    ("protocols", "given"),
    [
        (
            [{"name": "low_label", "of": ["finetune"], "shares": [0.01]}, {"name": "robustness"}],
            ["eval/robustness_top1", "eval/finetune_top1_1pct", "eval/mce"],
        ),
        ([{"name": "attentive"}], ["eval/attentive_top1"]),
    ],
)
def test_an_objective_is_any_score_of_the_backbone(protocols, given):
    space = {"features.pooling": CHOICES}
    for metric in given:
        spec = SearchSpec.parse(evaluations(space, {"protocols": protocols}, objective={"metric": metric}))
        assert spec.objectives[0].mode == ("min" if metric == "eval/mce" else "max")


def test_a_trial_registers_no_classifier_and_the_promoted_evaluation_does():
    registering = {"name": "finetune", "register_as": "digits-classifier", "export": {"formats": ["timm"]}}
    spec = SearchSpec.parse(evaluations(base={"protocols": [registering]}))
    assert spec.at({"protocols.finetune.base_lr": 0.01}).registering is None
    promoted = parse_base(spec.promoted({"protocols.finetune.base_lr": 0.01}, PromoteSpec(), {}))
    assert promoted.registering.register_as == "digits-classifier"
    with pytest.raises(SpecError, match="named in the search's base"):
        spec.promoted({}, PromoteSpec(overrides={"protocols.finetune.register_as": "mine"}), {})

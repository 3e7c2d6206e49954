"""The spec of evaluations: what it accepts, what it refuses and how it says so, and what it measures."""

import pytest

from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.evaluate import CORRUPTIONS, EvaluateSpec
from trainer.spec.job import parse_spec
from trainer.spec.measurements import measurements
from trainer.spec.metric_keys import score_key
from trainer.spec.plan import resolve

SHORTEST = {"kind": "evaluate", "backbone": "digits", "dataset": {"uri": "builtin://digits"}}


def spec_of(**parts) -> EvaluateSpec:
    spec = parse_spec(SHORTEST | parts)
    assert isinstance(spec, EvaluateSpec)
    return spec


def names(**parts) -> list[str]:
    return [unit.name for unit in measurements(spec_of(**parts))]


def test_backbone_and_dataset_are_all_that_a_spec_needs():
    spec = spec_of()
    assert [each.name for each in spec.protocols] == ["knn", "linear"]
    assert (spec.seeds, spec.baselines, spec.name) == (3, ("random", "scratch"), "evaluate-digits")


@pytest.mark.parametrize(
    "backbone", ["digits", "digits:3", "digits@champion", {"job": "job-a"}, {"uri": "s3://models/vit", "num_heads": 3}]
)
def test_a_network_is_named_in_any_of_its_forms_and_is_the_same_after_a_round_trip(backbone):
    spec = spec_of(backbone=backbone)
    assert parse_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(("backbone", "read"), [("digits:3", True), ({"job": "job-a"}, True), ({"uri": "/w"}, False)])
def test_an_attempt_reads_another_job_unless_the_weights_are_from_elsewhere(backbone, read):
    assert spec_of(backbone=backbone).reads_source is read


REFUSED = {
    "a name that is none": ({"backbone": "Digits"}, "backbone", "write NAME, NAME:3 or NAME@alias"),
    "version zero": ({"backbone": "digits:0"}, "backbone", "write NAME, NAME:3 or NAME@alias"),
    "a number": ({"backbone": 3}, "backbone", "write NAME, NAME:3 or NAME@alias, {job: JOB} or {uri: /path}"),
    "no checkpoint's folder": (
        {"backbone": {"job": "job-a", "checkpoint": "last"}}, "backbone.checkpoint", "checkpoints/a1/00000100",
    ),
    "a relative path": ({"backbone": {"uri": "models/vit"}}, "backbone.uri", "must be an absolute path"),
    "an unknown protocol": ({"protocols": [{"name": "knnn"}]}, "protocols.0.name", "give one of knn, linear"),
    "a protocol as a word": ({"protocols": ["knn"]}, "protocols.0.name", "for example {name: knn}"),
    "no protocol": ({"protocols": []}, "protocols", "at least 1"),
    "a protocol twice": ({"protocols": [{"name": "knn"}, {"name": "knn"}]}, "protocols", "knn is repeated"),
    "another protocol's field": ({"protocols": [{"name": "linear", "k": [3]}]}, "protocols.0.k", "unknown field"),
    "a solver that is none": ({"protocols": [{"name": "linear", "solver": {}}]}, "protocols.0.solver", "must be lbfgs"),
    "a name that is no text": ({"protocols": [{"name": {}}]}, "protocols.0.name", "give one of knn, linear"),
    "a share twice": (
        {"protocols": [{"name": "low_label", "shares": [0.1, 0.1]}]}, "protocols.0.shares", "name each share once",
    ),
    "no neighbour": ({"protocols": [{"name": "knn", "k": [0]}]}, "protocols.0.k.0", "greater than or equal to 1"),
    "all labels": ({"protocols": [{"name": "low_label", "shares": [1]}]}, "protocols.0.shares.0", "less than 1"),
    "no corruption of that name": (
        {"protocols": [{"name": "robustness", "corruptions": ["rain"]}]}, "protocols.0.corruptions.0", "'snow'",
    ),
    "no seed": ({"seeds": 0}, "seeds", "greater than or equal to 1"),
    "a baseline twice": ({"baselines": ["random", "random"]}, "baselines", "name each baseline once"),
    "a share beside a test dataset": (
        {"test": {"uri": "/t"}, "held_out": 0.5}, "held_out", "leave one of the two out",
    ),
    "no such layer": ({"features": {"layer": "first"}}, "features.layer", "'last' or 'all'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_spec_is_refused_by_field_and_remedy(case):
    parts, field, remedy = REFUSED[case]
    with pytest.raises(SpecError) as refused:
        spec_of(**parts)
    found = {problem.field: problem.message for problem in refused.value.problems}
    assert list(found) == [field]
    assert remedy in found[field]


def test_what_depends_on_chance_is_measured_with_each_seed_and_the_rest_once():
    assert names(seeds=2, seed=5, protocols=[{"name": "knn"}, {"name": "linear"}]) == [
        "knn-backbone-5", "linear-backbone-5", "linear-backbone-6",
        "knn-random-5", "linear-random-5", "knn-random-6", "linear-random-6",
    ]  # fmt: skip


def test_without_baselines_only_the_backbone_is_measured():
    assert names(seeds=1, baselines=[]) == ["knn-backbone-0", "linear-backbone-0"]


def test_few_labels_are_measured_by_share_and_seed():
    low = {"name": "low_label", "shares": [0.1, 0.01]}
    assert names(seeds=1, protocols=[low]) == [
        "linear-0.01-backbone-0", "linear-0.1-backbone-0", "linear-0.01-random-0", "linear-0.1-random-0",
    ]  # fmt: skip


def test_each_corruption_is_measured_once_for_the_backbone_and_once_for_untrained_weights():
    units = measurements(spec_of(seeds=3, protocols=[{"name": "robustness"}]))
    assert [unit.corruption for unit in units] == [*CORRUPTIONS, *CORRUPTIONS]
    assert {unit.key for unit in units} == {"eval/robustness_top1", "eval/robustness_top1_random_init"}


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("knn",), "eval/knn_top1"),
        (("linear", 0.01), "eval/linear_top1_1pct"),
        (("linear", 0.005, "random"), "eval/linear_top1_0.5pct_random_init"),
        (("finetune", None, "scratch"), "eval/finetune_top1_scratch"),
    ],
)
def test_the_keys_of_scores_are_those_of_the_contract(arguments, key):
    assert score_key(*arguments) == key


def test_auto_takes_a_worker_for_each_gpu_and_one_on_the_cpu():
    assert resolve(spec_of(), ClusterShape.of(cpus=12, gpus=3)).resources.workers == 3
    assert resolve(spec_of(), ClusterShape.of(cpus=12)).resources.workers == 1


@pytest.mark.parametrize(("batch", "workers"), [(1024, 3), (4, 2), (1, 1)])
def test_a_batch_need_not_divide_by_the_workers_but_each_has_a_pair_of_it(batch, workers):
    spec = spec_of(protocols=[{"name": "finetune", "batch_size": batch}])
    assert resolve(spec, ClusterShape.of(cpus=12, gpus=3)).resources.workers == workers

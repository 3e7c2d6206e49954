"""The section `evaluation.after` of a pretraining spec: its two forms, what it refuses, and what follows from it."""

import pytest

from trainer.spec.base import SpecError
from trainer.spec.job import parse_pretrain
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import PromoteSpec
from trainer.spec.subject import CheckpointRef

DIGITS = {"uri": "builtin://digits"}
KNN = {"name": "knn"}


def spec_of(after, **evaluation):
    return parse_pretrain({"kind": "pretrain", "dataset": DIGITS, "evaluation": {"after": after} | evaluation})


def test_a_plain_list_of_protocols_is_an_evaluation_of_what_was_trained_on_its_own_images():
    spec = spec_of([KNN, {"name": "finetune", "epochs": 5}])
    following = spec.following("digits:3")
    assert [each.name for each in following.protocols] == ["knn", "finetune"]
    assert following.protocols[1].epochs == 5
    assert (following.backbone, following.dataset, following.name) == ("digits:3", spec.dataset, "evaluate-digits:3")
    assert parse_pretrain(spec.model_dump(mode="json")) == spec


def test_a_mapping_sets_everything_else_of_it():
    after = {
        "protocols": [KNN], "dataset": {"uri": "/data/train"}, "test": {"uri": "/data/test"}, "seeds": 1,
        "features": {"pooling": "cls"}, "baselines": ["random"], "resources": {"workers": 2},
    }  # fmt: skip
    spec = spec_of(after)
    following = spec.following(CheckpointRef(job="job-a"))
    assert (following.dataset.uri, following.test.uri) == ("file:///data/train", "file:///data/test")
    assert (following.seeds, following.baselines, following.features.pooling) == (1, ("random",), "cls")
    assert (following.resources.workers, following.backbone.job) == (2, "job-a")
    assert parse_pretrain(spec.model_dump(mode="json")) == spec


def test_held_out_images_come_before_those_of_training():
    assert spec_of([KNN], dataset={"uri": "/data/held-out"}).following("a:1").dataset.uri == "file:///data/held-out"


def test_nothing_follows_unless_it_is_asked_for():
    assert spec_of(None).following("digits:3") is None


@pytest.mark.parametrize(
    ("after", "pointer", "text"),
    [
        ([], "", "at least 1 item"),
        ("knn", "", "list protocols, for example [{name: knn}]"),
        ([{"name": "knnn"}], "/0/name", "give one of knn, linear"),
        ([KNN, {"name": "linear", "k": 3}], "/1/k", "unknown field"),
        ([KNN, KNN], "", "knn is repeated"),
        ({"protocols": [KNN, KNN]}, "/protocols", "knn is repeated"),
        ({"protocls": [KNN]}, "/protocls", "did you mean 'protocols'?"),
        ({"backbone": "digits"}, "/backbone", "unknown field; "),
        ({"test": DIGITS, "held_out": 0.3}, "/held_out", "has no meaning beside test"),
        ({"dataset": {"uri": "photos"}}, "/dataset/uri", "must be an absolute path"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(after, pointer, text):
    with pytest.raises(SpecError) as error:
        spec_of(after)
    (problem,) = error.value.problems
    assert problem.pointer == f"/evaluation/after{pointer}"
    assert text in problem.message


def test_no_evaluation_follows_a_trial_but_the_job_that_it_is_promoted_to():
    base = {"dataset": DIGITS, "evaluation": {"every_epochs": 1, "after": [KNN]}}
    space = {"optimization.base_lr": {"type": "float", "low": 0.001, "high": 0.01}}
    search = SearchSpec.parse({"kind": "search", "base": base, "space": space})
    point = {"optimization.base_lr": 0.002}
    trial = search.at(point)
    assert (trial.evaluation.after, trial.evaluation.every_epochs) == (None, 1)
    promoted = parse_pretrain(search.promoted(point, PromoteSpec(), {}))
    assert promoted.following("digits:1") is not None

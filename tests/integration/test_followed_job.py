"""A pretraining on a live stack whose spec asks for an evaluation, from its submission to the score of its version."""

from __future__ import annotations

from live import make_spec, wait_state

from service.jobs.state import State


def test_a_version_is_measured_without_anybody_asking_again(stack):
    spec = make_spec(
        name="followed-by-knn",
        optimization={"epochs": 4},
        resources={"workers": 1},
        evaluation={"after": [{"name": "knn"}]},
        register_as="followed-digits",
        labels={"team": "vision"},
    )
    assert "An evaluation of the version of followed-digits" in stack.client.plan(spec).message
    trained = wait_state(stack, stack.client.submit(spec).id, State.SUCCEEDED)
    version = trained.result.backbone
    (following,) = trained.followed_by
    evaluation = wait_state(stack, following, State.SUCCEEDED)
    assert (evaluation.kind, evaluation.follows, evaluation.labels) == ("evaluate", trained.id, {"team": "vision"})
    assert evaluation.spec["backbone"] == f"followed-digits:{version.version}"
    score = evaluation.result.metrics["eval/knn_top1"]
    assert score > 0.3  # ten classes: 0.1 by chance
    shown = stack.client.version("followed-digits", version.version)
    assert [each.job for each in shown.evaluations] == [following]
    assert f"follows {trained.id}" in " ".join(stack.rcmae("jobs", "show", following).stdout.split())

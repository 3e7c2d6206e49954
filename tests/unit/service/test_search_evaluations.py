"""Searches whose trials are evaluations, through the REST interface and in the pages."""

from __future__ import annotations

from typing import Any

import pytest
from backbone_files import Registry
from kept_checkpoints import CHECKPOINTS, refused, trained
from optuna.trial import TrialState
from search_files import SearchFiles
from service_fakes import problem

from trainer.protocol import names
from trainer.protocol.progress import Newest
from trainer.protocol.request import VersionSource
from trainer.spec import metric_keys

RATE, SCORE = "protocols.finetune.base_lr", "eval/finetune_top1"


def spec_of(backbone: Any = "digits", base: dict[str, Any] | None = None, **over: Any) -> dict[str, Any]:
    evaluation = {
        "kind": "evaluate",
        "backbone": backbone,
        "dataset": {"uri": "builtin://digits"},
        "protocols": [{"name": "finetune"}, {"name": "linear"}],
    }
    return {
        "kind": "search",
        "name": "tune",
        "base": evaluation | (base or {}),
        "space": {RATE: {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "objective": {"metric": SCORE},
    } | over


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    found = Registry(database, mlflow, root)
    for number in (1, 2):
        found.add("digits", number)
    return found


@pytest.fixture
def tried(searches: SearchFiles, registry: Registry) -> str:  # noqa: ARG001 - the backbone that is measured
    """A search with two trials that have ended, one that runs, and one that failed."""
    job_id = searches.add(spec=spec_of("digits:1"))
    for rate, value in ((1e-3, 0.7), (2e-3, 0.8)):
        metrics = {SCORE: value, "eval/linear_top1": 0.5, "progress/epoch": 1.0}
        found = {names.TRIAL_METRICS: metrics, names.TRIAL_EPOCH: 1}
        searches.trial(job_id, TrialState.COMPLETE, {RATE: rate}, [value], **found)
    searches.trial(job_id, TrialState.FAIL, {RATE: 4e-3})
    searches.with_run(job_id, {}, point={RATE: 3e-3})
    return job_id


def test_a_search_fixes_the_version_and_tells_each_attempt_where_it_is(served, world, ray, registry):
    planned = served.post("/v1/jobs/plan", json=spec_of()).json()
    assert planned["spec"]["base"]["backbone"] == "digits:2"
    assert "Each makes 6 measurements" in planned["message"]
    assert "override test.uri" in planned["message"]
    job = served.post("/v1/jobs", json=spec_of()).json()
    registry.add("digits", 3)
    world.rounds()
    (request,) = ray.requests
    assert isinstance(request.source, VersionSource)
    assert (request.job_id, request.source.version) == (job["id"], 2)
    assert problem(served.delete("/v1/backbones/digits/versions/2"), 409, "version_needed")


@pytest.mark.usefixtures("registry")
def test_a_plan_says_that_trials_are_chosen_on_their_test(served):
    spec = spec_of(base={"test": {"uri": "builtin://digits"}})
    assert "chosen_on_test" in [each["code"] for each in served.post("/v1/jobs/plan", json=spec).json()["warnings"]]


@pytest.mark.usefixtures("registry")
def test_what_trials_could_not_measure_alike_is_refused(served, world, root):
    training = trained(world, root, state="running")
    depth = {"features.layer": {"type": "int", "low": 1, "high": 900}}
    for spec, field, text in (
        (spec_of("letters"), "base.backbone", "there is no backbone letters"),
        (spec_of({"job": training}), "base.backbone.checkpoint", "still trains"),
    ):
        refused(served.post("/v1/jobs", json=spec), field, text)
    (found,) = problem(served.post("/v1/jobs", json=spec_of(space=depth)), 422, "spec_invalid")["problems"]
    assert found["field"] == "space.features.layer.high"
    assert "blocks" in found["message"]
    named = spec_of({"job": training, "checkpoint": CHECKPOINTS[0]})
    assert served.post("/v1/jobs", json=named).status_code == 201


def test_a_trial_is_promoted_to_an_evaluation_on_other_images(api, tried):
    body = {"overrides": {"test.uri": "s3://data/test"}}
    job = api.post(f"/v1/searches/{tried}/trials/1/promote", json=body).json()
    assert (job["kind"], job["spec"]["test"]["uri"]) == ("evaluate", "s3://data/test")
    assert (job["spec"]["backbone"], job["spec"]["baselines"]) == ("digits:1", ["random", "scratch"])
    assert job["spec"]["protocols"][0]["base_lr"] == 2e-3
    for overrides, field in (
        ({"backbone": "digits:2"}, "overrides.backbone"),
        ({"protocols.robustness.reference": "job-x"}, "overrides.protocols.robustness.reference"),
        ({"kind": "search"}, "overrides.kind"),
    ):
        answer = api.post(f"/v1/searches/{tried}/trials/1/promote", json={"overrides": overrides})
        assert [each["field"] for each in problem(answer, 422, "spec_invalid")["problems"]] == [field]


def test_a_running_trial_shows_how_many_measurements_are_done(api, searches, mlflow, tried):
    run = mlflow.runs[searches.studies.trials(tried)[3].user_attrs[names.TRIAL_RUN]]
    newest = Newest(attempt=1, step=2, values={metric_keys.SAMPLES: 2.0}, images_per_s=None)
    run.tags |= {names.TAG_NEWEST: newest.model_dump_json(), names.TAG_STEPS: "6"}
    progress = api.get(f"/v1/searches/{tried}/trials/3").json()["progress"]
    assert (progress["step"], progress["steps"], progress["epochs"]) == (2, 6, 1)
    assert (progress["epoch"], progress["loss"]) == (pytest.approx(1 / 3), None)


def test_every_page_of_such_a_search_is_shown(browsers, api, tried):
    assert api.get(f"/v1/searches/{tried}").json()["best"][0]["values"] == [0.8]
    paths = [
        *(f"/searches/{tried}/{tab}" for tab in ("overview", "trials", "analysis", "logs", "config")),
        *(f"/searches/{tried}/trials/{number}" for number in range(4)),
        f"/searches/{tried}/compare?trial=0&trial=1",
        f"/searches/new?like={tried}",
        f"/searches/new?search={tried}&trial=1",
    ]
    for path in paths:
        answer = browsers.alice.get(path)
        assert answer.status_code == 200, (path, answer.text[-500:])
    for plot in ("history", "curves", "parallel", "importance", "slice", "timeline"):
        assert api.get(f"/v1/searches/{tried}/plots/{plot}").status_code == 200, plot
    assert api.get(f"/v1/searches/{tried}/trials/0/images").json()["items"] == []

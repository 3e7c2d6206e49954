"""Jobs that evaluate: what they name is fixed at the submission, told to the attempt, and kept with the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backbone_files import Registry, compare_with_mlflow
from evaluations import add_evaluation, evaluation
from kept_checkpoints import CHECKPOINTS, refused, trained
from service_fakes import add_job, job_of

from service.db.tables import EvaluationRow, RegisteredBackbone
from trainer.protocol import names
from trainer.protocol.evaluation import EVALUATION, CorruptionScore
from trainer.protocol.outcome import Outcome
from trainer.protocol.progress import Newest
from trainer.protocol.request import Source, VersionSource
from trainer.spec import metric_keys

DIGITS = {"uri": "builtin://digits"}


def spec_of(backbone: Any, **over: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "backbone": backbone, "dataset": DIGITS, "seeds": 1} | over


@pytest.fixture
def registry(world, mlflow, root) -> Registry:
    found = Registry(world.database, mlflow, root)
    for number in (1, 2, 3):
        found.add("digits", number)
    found.set_alias("digits", "champion", 1)
    found.set_alias("digits", "best", 2)
    return found


# --- submission -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"), [("digits", 1), ("digits:3", 3), ("digits@best", 2), ("digits@champion", 1)]
)
def test_a_name_is_the_version_that_it_means_at_the_submission(served, world, ray, registry, written, meant):
    planned = served.post("/v1/jobs/plan", json=spec_of(written)).json()
    assert planned["spec"]["backbone"] == f"digits:{meant}"
    job = served.post("/v1/jobs", json=spec_of(written)).json()
    assert job["spec"]["backbone"] == f"digits:{meant}"
    registry.set_alias("digits", "champion", 3)
    world.rounds()
    (request,) = ray.requests
    assert isinstance(request.source, VersionSource)
    assert (request.source.name, request.source.version) == ("digits", meant)
    assert request.source.folder.endswith(f"digits-{meant}/artifacts")
    assert request.source.trained_by == registry.jobs["digits"]


@pytest.mark.parametrize("state", ["succeeded", "running"])
def test_the_newest_checkpoint_of_an_ended_job_is_fixed_at_the_submission(served, world, root, ray, state):
    source = trained(world, root, state=state)
    job = served.post("/v1/jobs", json=spec_of({"job": source})).json()
    assert job["spec"]["backbone"]["checkpoint"] == (CHECKPOINTS[1] if state == "succeeded" else None)
    world.rounds()
    request = ray.requests[-1]
    assert isinstance(request.source, Source)
    assert request.source.job_id == source


def test_weights_from_elsewhere_need_nothing_of_another_job(served, world, ray):
    served.post("/v1/jobs", json=spec_of({"uri": "s3://models/vit"})).raise_for_status()
    world.rounds()
    assert ray.requests[0].source is None


def test_what_cannot_be_measured_is_refused_with_the_field_and_what_to_do(served, world, root, registry):
    source = trained(world, root, method={"name": "mae"})
    empty = add_job(world.database, "running")
    registry.add("graphs", 1, formats="onnx,torch_export")
    robust = [{"name": "knn"}, {"name": "robustness", "reference": source}]
    for spec, field, text in (
        (spec_of("letters"), "backbone", "there is no backbone letters"),
        (spec_of("digits:9"), "backbone", "digits has no version 9: it has 1, 2, 3"),
        (spec_of("digits@worst"), "backbone", "digits has no alias worst: it has best, champion"),
        (spec_of("graphs"), "backbone", "has only onnx, torch_export"),
        (spec_of({"job": "job-none"}), "backbone.job", "there is no job"),
        (spec_of({"job": empty}), "backbone.job", "no checkpoint yet"),
        (spec_of({"job": source, "network": "teacher"}), "backbone.network", "use student"),
        (spec_of({"job": source, "checkpoint": "checkpoints/a1/00000300"}), "backbone.checkpoint", CHECKPOINTS[1]),
        (
            spec_of("digits", protocols=robust),
            "protocols.1.reference",
            "there is no evaluation of this job that has succeeded",
        ),
    ):
        for path in ("/v1/jobs", "/v1/jobs/plan"):
            refused(served.post(path, json=spec), field, text)


def test_a_reference_is_compared_at_the_submission_as_far_as_it_is_known(served, clients, world, registry):
    registry.add("mine", 1)
    with world.database.session() as session:
        session.get_one(RegisteredBackbone, "mine").visibility = "owners"
    snow = [CorruptionScore(corruption="snow", severity=1, top1=0.5)]
    fog = [CorruptionScore(corruption="fog", severity=1, top1=1.0)]
    ids = {
        "snow": add_evaluation(world.database, evaluation(corruptions=snow)),
        "none": add_evaluation(world.database, evaluation()),
        "fog": add_evaluation(world.database, evaluation(corruptions=fog)),
        "half": add_evaluation(world.database, evaluation(corruptions=snow, held_out=0.5)),
        "hidden": add_evaluation(world.database, evaluation(corruptions=snow, name="mine")),
    }

    def relative(name: str, **over: Any) -> dict[str, Any]:
        robust = {"name": "robustness", "corruptions": ["snow"], "severities": [1], "reference": ids[name]}
        return spec_of("digits", protocols=[{"name": "knn"}, robust | over])

    for spec, text in (
        (relative("none"), "has measured no corruptions"),
        (relative("snow", severities=[1, 2]), "other corruptions or severities: snow at 1"),
        (relative("snow", corruptions=["frost"]), "other corruptions"),
        (relative("fog", corruptions=["fog"]), "makes no error under fog"),
        (relative("half"), "a held-out share of 0.5"),
    ):
        refused(served.post("/v1/jobs", json=spec), "protocols.1.reference", text)
    # Bob sees no job of alice's, but what was found of a backbone that is open to him.
    refused(clients.bob.post("/v1/jobs", json=relative("hidden")), "protocols.1.reference", "there is no evaluation")
    assert clients.bob.post("/v1/jobs", json=relative("snow")).status_code == 201


@pytest.mark.usefixtures("registry")
def test_memory_counts_the_features_of_all_images_and_what_trains(served):
    def memory(**over: Any) -> int:
        return int(served.post("/v1/jobs/plan", json=spec_of("digits", **over)).json()["memory_per_worker_bytes"])

    plain = memory()
    assert memory(features={"layer": "all"}) > plain
    assert memory(protocols=[{"name": "finetune"}]) > plain + 12 * 2**10
    elsewhere = served.post("/v1/jobs/plan", json=spec_of("digits", dataset={"uri": "s3://data/shelf"})).json()
    assert [each["code"] for each in elsewhere["warnings"]] == ["images_not_counted"]
    assert elsewhere["memory_per_worker_bytes"] < plain


@pytest.mark.usefixtures("registry")
def test_a_paused_job_whose_version_was_deleted_says_so_when_it_is_resumed(served):
    job_id = served.post("/v1/jobs", json=spec_of("digits:3")).json()["id"]
    served.post(f"/v1/jobs/{job_id}/pause").raise_for_status()
    served.delete("/v1/backbones/digits/versions/3").raise_for_status()
    answer = served.post(f"/v1/jobs/{job_id}/resume")
    refused(answer, "backbone", "digits:3, which was to be measured, has been deleted")


@pytest.mark.usefixtures("registry")
def test_a_plan_says_how_much_is_measured(served):
    plan = served.post("/v1/jobs/plan", json=spec_of("digits", seeds=2)).json()
    text = "It makes 7 measurements: 3 of the backbone (1 knn, 2 linear) and 4 of baselines (2 knn, 2 linear)."
    assert text in plan["message"]
    assert plan["parameters"]["encoder"] > 0


def test_the_same_key_is_the_same_job_although_the_name_means_another_version_now(served, registry):
    key = {"Idempotency-Key": "once"}
    first = served.post("/v1/jobs", json=spec_of("digits"), headers=key)
    registry.set_alias("digits", "champion", 3)
    again = served.post("/v1/jobs", json=spec_of("digits"), headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


# --- its life ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registry")
def test_the_time_left_is_told_by_the_work_of_the_measurements_and_not_by_their_number(served, world):
    job_id = served.post("/v1/jobs", json=spec_of("digits")).json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    run = world.mlflow.runs[job_of(world.database, job_id).run_id]
    newest = Newest(attempt=1, step=9, values={metric_keys.SAMPLES: 2000.0}, images_per_s=50.0)
    run.tags |= {names.TAG_STEPS: "10", names.TAG_WORK: "10000", names.TAG_NEWEST: newest.model_dump_json()}
    world.rounds()
    progress = served.get(f"/v1/jobs/{job_id}").json()["progress"]
    assert (progress["done"], progress["total"], progress["eta_s"]) == (9, 10, 160.0)


@pytest.mark.usefixtures("registry")
def test_what_was_found_is_the_result_and_in_the_table_of_evaluations(served, world):
    job_id = served.post("/v1/jobs", json=spec_of("digits:1")).json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    assert "measuring" in served.get(f"/v1/jobs/{job_id}").json()["message"]
    folder = Path(job_of(world.database, job_id).artifact_uri.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATION).write_text(evaluation().model_dump_json())
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["result"]["metrics"]) == (
        "succeeded",
        {"eval/knn_top1": 0.9, "eval/knn_top1_random_init": 0.7},
    )
    assert job["message"] == "digits:1 on digits: knn_top1 0.900."
    with world.database.read() as session:
        assert session.get_one(EvaluationRow, job_id).name == "digits"


@pytest.mark.usefixtures("registry")
def test_a_version_that_is_gone_when_the_attempt_starts_ends_the_job_with_the_reason(served, world, mlflow):
    job_id = served.post("/v1/jobs", json=spec_of("digits:3")).json()["id"]
    mlflow.registered = [each for each in mlflow.registered if each.version != 3]
    compare_with_mlflow(world.database, mlflow)
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["reason"]) == ("failed", "data_error")
    assert "digits:3, which was to be measured, has been deleted" in job["message"]

"""Classifiers in the registry: who may register them, what a job says of its own, and the way from and to backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backbone_files import FILES, Registry, write
from evaluations import evaluation
from kept_checkpoints import refused
from service_fakes import job_of, spec_with

from trainer.protocol.evaluation import EVALUATION
from trainer.protocol.outcome import Outcome

TAGS = {
    "rcmae.type": "classifier", "rcmae.classes": '["cat", "dog"]', "rcmae.fine_tuned_from": "digits:1",
    "rcmae.formats": "timm,hf",
}  # fmt: skip


def spec_of(name: str, backbone: str = "digits:1", **protocol: Any) -> dict[str, Any]:
    fine_tuned = {"name": "finetune", "recipe": "small", "register_as": name} | protocol
    return {
        "kind": "evaluate", "backbone": backbone, "dataset": {"uri": "builtin://digits"}, "seeds": 1,
        "protocols": [{"name": "knn"}, fine_tuned],
    }  # fmt: skip


@pytest.fixture
def registry(world, mlflow, root) -> Registry:
    found = Registry(world.database, mlflow, root)
    found.add("digits", 1)
    return found


@pytest.fixture
def register(served, world, mlflow, root, registry) -> Callable[[str], str]:  # noqa: ARG001 - the backbone is there
    """Runs an evaluation that registers a classifier of `digits:1`, by its name; gives the job."""

    def registered(name: str) -> str:
        job_id = str(served.post("/v1/jobs", json=spec_of(name)).json()["id"])
        world.rounds()
        world.run_attempt(job_id)
        folder = Path(job_of(world.database, job_id).artifact_uri.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EVALUATION).write_text(evaluation({"eval/finetune_top1": 0.9}).model_dump_json())
        mlflow.register(name, 1, job_id, write(root / f"models/{name}-1/artifacts", FILES), TAGS)
        world.end_attempt(job_id, Outcome(state="succeeded"))
        world.rounds()
        return job_id

    return registered


@pytest.fixture
def job(register) -> str:
    return str(register("cats"))


def test_the_job_names_its_classifier_and_both_lead_to_each_other(served, job):
    view = served.get(f"/v1/jobs/{job}").json()
    assert view["state"] == "succeeded"
    assert view["result"]["backbone"] == {"name": "cats", "version": 1}
    assert view["result"]["metrics"] == {"eval/finetune_top1": 0.9}
    assert view["message"].endswith("The classifier is registered.")
    version = served.get("/v1/backbones/cats/versions/1").json()
    assert (version["type"], version["classes"], version["fine_tuned_from"]) == (
        "classifier", ["cat", "dog"], "digits:1",
    )  # fmt: skip
    backbone = served.get("/v1/backbones/digits").json()
    assert backbone["classifiers"] == [{"name": "cats", "version": 1, "fine_tuned_from": "digits:1"}]
    for kind, name in (("classifier", "cats"), ("backbone", "digits")):
        listed = served.get("/v1/backbones", params={"type": kind}).json()["items"]
        assert [(each["name"], each["type"]) for each in listed] == [(name, kind)]


def test_hub_clients_are_told_that_it_classifies(served, job):  # noqa: ARG001 - the classifier is there
    told = {name: served.get(f"/hf/api/models/rcmae/{name}").json() for name in ("cats", "digits")}
    assert told["cats"]["pipeline_tag"] == "image-classification"
    assert told["digits"]["pipeline_tag"] == "image-feature-extraction"


def test_a_name_has_backbones_or_classifiers(served, job):  # noqa: ARG001 - the classifier is there
    field = "protocols.finetune.register_as"
    refused(served.post("/v1/jobs", json=spec_of("digits")), field, "is the name of backbones")
    backbone = served.post("/v1/jobs", json=spec_with(register_as="cats"))
    refused(backbone, "register_as", "is the name of classifiers")
    assert served.post("/v1/jobs", json=spec_of("cats")).status_code == 201


def test_a_classifier_is_no_backbone_of_another_job(served, job):  # noqa: ARG001 - the classifier is there
    answer = served.post("/v1/jobs", json=spec_of("more", backbone="cats"))
    refused(answer, "backbone", "cats:1 is a classifier, of which no features are computed: name digits:1")


def test_the_classifier_goes_with_its_job_only_if_that_is_confirmed(served, job):
    kept = served.delete(f"/v1/jobs/{job}")
    assert (kept.status_code, kept.json()["code"]) == (409, "backbones_would_go")
    assert served.delete(f"/v1/jobs/{job}", params={"with_backbones": True}).status_code == 200


def test_the_classifier_of_a_private_backbone_is_its_owners_alone(served, register):
    register("cats")
    served.patch("/v1/backbones/digits", json={"visibility": "owners"}).raise_for_status()
    register("dogs")
    found = {each["name"]: each["visibility"] for each in served.get("/v1/backbones").json()["items"]}
    assert found == {"cats": "all", "digits": "owners", "dogs": "owners"}


def test_a_plan_says_what_is_registered_and_what_is_left_out(served, registry):  # noqa: ARG001 - the backbone is there
    told = served.post("/v1/jobs/plan", json=spec_of("cats")).json()["message"]
    assert "registers the classifier of seed 0 as cats, in timm; not in hf, which needs pooling: cls" in told
    told = served.post("/v1/jobs/plan", json=spec_of("cats", pooling="cls")).json()["message"]
    assert "as cats, in timm and hf." in told

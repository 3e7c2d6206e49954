"""Jobs that publish: checked when they are submitted, started with the source run's folder, and served afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from backbone_files import FILES, write
from kept_checkpoints import CHECKPOINTS, refused, trained
from service_fakes import SPEC, add_job, job_of, problem

from service.adapters.ray_cluster import RayState
from service.db.tables import Job, now
from service.jobs import repository
from trainer.protocol.outcome import Outcome


def spec_of(job_id: str, **over: Any) -> dict[str, Any]:
    return {"kind": "publish", "job": job_id, "register_as": "late"} | over


# --- submission -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [None, *CHECKPOINTS])
def test_a_kept_checkpoint_is_published_by_a_job_of_one_small_worker(served, world, root, ray, checkpoint):
    source = trained(world, root)
    answer = served.post("/v1/jobs", json=spec_of(source, **{"checkpoint": checkpoint} if checkpoint else {}))
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert (job["kind"], job["name"], job["spec"]["checkpoint"]) == ("publish", "publish-late", checkpoint)
    world.rounds()
    (request,) = ray.requests
    assert request.spec.model_dump(mode="json") == job["spec"]
    assert request.source.model_dump() == {
        "job_id": source, "run_id": "run-of-alice", "artifact_uri": job_of(world.database, source).artifact_uri,
        "since_attempt": 1,
    }  # fmt: skip
    held = served.get("/v1/cluster").json()["running"]
    assert [(each["id"], each["workers"], each["cpus"], each["gpus"]) for each in held] == [(job["id"], 1, 1, 0)]
    assert served.get(f"/v1/jobs/{job['id']}/spec").json() == job["spec"]


def test_what_cannot_be_published_is_refused_with_the_field_and_what_to_do(served, world, root):
    source = trained(world, root, method={"name": "mae"})
    empty, others = add_job(world.database, "running"), trained(world, root, owner="bob")
    publishing = served.post("/v1/jobs", json=spec_of(source)).json()["id"]
    space = {"optimization.base_lr": {"type": "float", "low": 1e-5, "high": 1e-3}}
    search = add_job(
        world.database, spec={"kind": "search", "base": SPEC, "space": space, "scheduler": {"name": "none"}}
    )
    for spec, field, text in (
        (spec_of("job-none"), "job", "there is no job"),
        (spec_of(others), "job", "there is no job"),
        (spec_of(publishing), "job", "name the job that trained"),
        (spec_of(search), "job", "promote a trial, and name the job it becomes"),
        (spec_of(empty), "job", "no checkpoint yet"),
        (
            spec_of(source, checkpoint="checkpoints/a1/00000300"),
            "checkpoint",
            "it has checkpoints/a1/00000200, checkpoints/a1/00000100",
        ),
        (spec_of(source, checkpoint="checkpoints/a2/00000100"), "checkpoint", "is not a checkpoint of"),
        (spec_of(source, export={"network": "teacher"}), "export.network", "student"),
    ):
        for path in ("/v1/jobs", "/v1/jobs/plan"):
            refused(served.post(path, json=spec), field, text)
    for spec, field in (
        (spec_of(source, checkpoint="../../etc"), "checkpoint"),
        (spec_of(source, register_as="x-timm"), "register_as"),
        (spec_of(source, optimization={}), "optimization"),
        ({"kind": "publish", "register_as": "x"}, "job"),
        (spec_of(source, resources={"workers": 2}), "resources.workers"),
        (spec_of(source, chekpoint=None), "chekpoint"),
    ):
        (found,) = problem(served.post("/v1/jobs", json=spec), 422, "spec_invalid")["problems"]
        assert found["field"] == field
    assert "did you mean 'checkpoint'?" in found["message"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ({}, "is required: one of embed, evaluate, import, inspect, pretrain, publish"),
        ({"kind": "tune"}, "one of: embed, evaluate, import, inspect, pretrain, publish"),
    ],
)
def test_a_kind_that_does_not_exist_is_told_with_those_that_do(served, kind, text):
    without = {name: value for name, value in SPEC.items() if name != "kind"}
    refused(served.post("/v1/jobs", json=without | kind), "kind", text)


def test_a_plan_says_when_it_would_start(served, world, root):
    plan = served.post("/v1/jobs/plan", json=spec_of(trained(world, root))).json()
    assert (plan["fits"], plan["steps"], plan["gang"]) == ("now", None, {"cpus": 1, "gpus": 0})
    assert plan["memory_per_worker_bytes"] > 0


def test_the_same_key_is_the_same_job_also_when_its_source_is_gone(served, world, root):
    source, key = trained(world, root), {"Idempotency-Key": "once"}
    first = served.post("/v1/jobs", json=spec_of(source), headers=key)
    served.post(f"/v1/jobs/{first.json()['id']}/pause").raise_for_status()
    assert served.delete(f"/v1/jobs/{source}").status_code == 200
    again = served.post("/v1/jobs", json=spec_of(source), headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_a_key_whose_job_is_deleted_meanwhile_spares_no_check(served, world, root, monkeypatch):
    """Nobody gets at another's checkpoint by deleting the job of a key just while the key is used again."""
    mine, others, key = trained(world, root), trained(world, root, owner="bob"), {"Idempotency-Key": "once"}
    first = served.post("/v1/jobs", json=spec_of(mine), headers=key).json()["id"]
    assert served.post(f"/v1/jobs/{first}/cancel").json()["state"] == "cancelled"
    real = repository.by_idempotency_key

    def and_then_deleted(*given: Any) -> Any:
        found = real(*given)
        if found is not None:
            monkeypatch.undo()
            served.delete(f"/v1/jobs/{first}").raise_for_status()
        return found

    monkeypatch.setattr(repository, "by_idempotency_key", and_then_deleted)
    assert served.post("/v1/jobs", json=spec_of(others), headers=key).status_code == 422
    refused(served.post("/v1/jobs", json=spec_of(others), headers=key), "job", "there is no job")


def test_a_storage_that_is_away_is_told(served, world, root):
    source = trained(world, root)
    root.rename(root.with_name("unmounted"))
    problem(served.post("/v1/jobs", json=spec_of(source)), 503, "unavailable")


# --- its life ---------------------------------------------------------------------------------------------------------


def test_a_published_version_is_served_and_both_jobs_name_it(served, world, root, mlflow):
    source = trained(world, root, state="failed")
    job_id = served.post("/v1/jobs", json=spec_of(source)).json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    assert "publishing" in served.get(f"/v1/jobs/{job_id}").json()["message"]
    mlflow.register("late", 1, job_id, write(root / "m-1", FILES))
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    assert job_of(world.database, job_id).message == "The backbone is registered."
    for each in (job_id, source):
        assert served.get(f"/v1/jobs/{each}").json()["result"]["backbones"] == [{"name": "late", "version": 1}]
    shown = served.get("/v1/backbones/late/versions/1").json()
    assert (shown["job_id"], shown["trained_by"]) == (job_id, source)
    assert served.post(f"/v1/jobs/{source}/retry").status_code == 200
    result = served.get(f"/v1/jobs/{source}").json()["result"]
    assert (result["backbones"], result["metrics"]) == ([{"name": "late", "version": 1}], {})
    assert served.delete("/v1/backbones/late/versions/1").status_code == 200
    world.rounds()
    assert served.get(f"/v1/jobs/{source}").json()["result"]["backbones"] == []
    assert mlflow.registered == []


def test_deleting_a_job_that_published_takes_its_version_and_leaves_the_source(served, world, root, mlflow):
    source = trained(world, root)
    job_id = served.post("/v1/jobs", json=spec_of(source)).json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    mlflow.register("late", 1, job_id, write(root / "m-1", FILES))
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    problem(served.delete(f"/v1/jobs/{job_id}"), 409, "backbones_would_go")
    assert served.delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    world.rounds()
    assert mlflow.registered == []
    assert served.get(f"/v1/jobs/{source}/checkpoints").json()["items"]
    assert served.get(f"/v1/jobs/{source}").json()["result"]["backbones"] == []


def test_a_job_whose_source_is_deleted_before_it_starts_fails_and_says_so(served, world, root, ray):
    source = trained(world, root)
    job_id = served.post("/v1/jobs", json=spec_of(source)).json()["id"]
    with world.database.session() as session:
        session.get_one(Job, source).deleted_at = now()
    other = world.add()
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["reason"]) == ("failed", "data_error")
    assert source in job["message"]
    assert world.state(other) == "starting"
    assert [request.job_id for request in ray.requests] == [other]
    refused(served.post(f"/v1/jobs/{job_id}/retry"), "job", f"{source}, whose checkpoint was to be published, has been")


def test_an_attempt_whose_submission_was_lost_is_told_of_its_source_again(served, world, root, ray):
    source = trained(world, root)
    job_id = served.post("/v1/jobs", json=spec_of(source)).json()["id"]
    ray.answers_lost = 1
    world.rounds()
    ray.jobs.clear()  # and what it had taken is gone
    world.rounds(2)
    assert ray.jobs[f"{job_id}-a1"] is RayState.PENDING
    assert [request.source.job_id for request in ray.requests] == [source] * len(ray.requests)
    assert len(ray.requests) == 2

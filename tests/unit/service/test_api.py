"""The REST interface: what is sent, answered and refused."""

from __future__ import annotations

import gc
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, attempts_of, events_of, job_of, post, problem, spec_with

from service.adapters.mlflow_runs import MetricPoint
from service.jobs import reading
from trainer.spec.dataset import DIGITS_IMAGES
from trainer.spec.plan import HELD_OUT_SHARE
from trainer.spec.pretrain import PretrainSpec

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


# --- submitting -------------------------------------------------------------------------------------------------------


def test_a_job_is_created_and_found_where_the_answer_says(api, database):
    answer = api.post("/v1/jobs", json=spec_with(labels={"team": "vision"}, priority=3))
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["owner"], job["priority"]) == ("queued", "alice", 3)
    assert job["labels"] == {"team": "vision"}
    assert job["attempts"] == 0
    assert job["result"] is None
    assert api.get(answer.headers["Location"]).json() == job
    assert datetime.fromisoformat(job["created_at"]).utcoffset() == timedelta(0)
    assert [(e.state, e.actor) for e in events_of(database, job["id"])] == [("queued", "alice")]


def test_the_same_key_with_the_same_spec_is_the_same_job(clients):
    key = {"Idempotency-Key": "nightly-1"}
    first = clients.alice.post("/v1/jobs", json=SPEC, headers=key)
    # Another order of the fields and a default written out: the same spec.
    again = clients.alice.post("/v1/jobs", json=dict(reversed(SPEC.items())) | {"priority": 0}, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Location"] == first.headers["Location"]
    other = clients.alice.post("/v1/jobs", json=spec_with(seed=1), headers=key)
    assert first.json()["id"] in problem(other, 422, "idempotency_key_reused")["detail"]
    assert len(clients.alice.get("/v1/jobs").json()["items"]) == 1
    assert clients.bob.post("/v1/jobs", json=SPEC, headers=key).status_code == 201, "a key is its owner's"
    assert clients.alice.post("/v1/jobs", json=SPEC).status_code == 201
    problem(clients.alice.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k" * 201}), 422, "parameter_invalid")


def test_a_deleted_job_s_key_is_free_again(api):
    key = {"Idempotency-Key": "nightly-1"}
    first = api.post("/v1/jobs", json=SPEC, headers=key).json()["id"]
    api.post(f"/v1/jobs/{first}/cancel").raise_for_status()
    api.delete(f"/v1/jobs/{first}").raise_for_status()
    again = api.post("/v1/jobs", json=spec_with(seed=1), headers=key)
    assert again.status_code == 201
    assert again.json()["id"] != first


def test_an_unknown_field_is_refused_with_its_place_and_the_nearest_name(api):
    answer = api.post("/v1/jobs", json=spec_with(optimization={"epoch": 2}, sed=1))
    found = {p["pointer"]: p for p in problem(answer, 422, "spec_invalid")["problems"]}
    assert set(found) == {"/optimization/epoch", "/sed"}
    assert found["/optimization/epoch"]["field"] == "optimization.epoch"
    assert "'epochs'" in found["/optimization/epoch"]["message"]
    assert "'seed'" in found["/sed"]["message"]
    assert api.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("fields", "pointer", "value"),
    [
        ({"dataset": {}}, "/dataset/uri", None),
        ({"dataset": {"uri": "gs://bucket/x"}}, "/dataset/uri", "gs://bucket/x"),
        ({"model": {"preset": "vit_huge"}}, "/model/preset", "vit_huge"),
        ({"method": {"mask_ratio": 1.5}}, "/method/mask_ratio", 1.5),
        ({"kind": "tune"}, "/kind", "tune"),
        ({"register_as": "Big-Name"}, "/register_as", "Big-Name"),
        ({"optimization": {"global_batch_size": 1700, "epochs": 1}}, "/optimization/global_batch_size", 1700),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/plan"])
def test_a_wrong_value_is_refused_with_its_place(api, path, fields, pointer, value):
    (found,) = problem(api.post(path, json=spec_with(**fields)), 422, "spec_invalid")["problems"]
    assert (found["pointer"], found["value"]) == (pointer, value)
    assert found["message"]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/plan"])
def test_a_body_that_is_no_spec_is_refused(api, path):
    problem(post(api, b'{"kind": "pretrain",', path), 422, "json_invalid")
    problem(post(api, b"kind: pretrain", path), 422, "json_invalid")
    problem(post(api, b"", path), 422, "body_invalid")
    problem(post(api, b"[]", path), 422, "body_invalid")
    problem(post(api, b"null", path), 422, "body_invalid")
    answer = api.post(path, content=json.dumps(SPEC), headers={"Content-Type": "text/plain"})
    assert "application/json" in problem(answer, 422, "body_invalid")["detail"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('"seed": 7', '"seed": 7, "seed": 8'), "'seed' appears twice"),
        (('"name": "here"', '"name": "here", "name": "here"'), "'name' appears twice"),
        (('"here"', "NaN"), "NaN is not a JSON value"),
        (('"here"', "1e999"), "1e999 is beyond the range"),
        (('"here"', "9" * 5000), "5000 digits"),
        (('"here"', "[" * 60 + "]" * 60), "nested too deeply"),
        (('"here"', "[" * 200_000 + "]" * 200_000), "nested too deeply"),
        (('"here"', "[" * 200_000), "nested too deeply"),
        (('"here"', '{"a":' * 90_000), "nested too deeply"),
        (('"here"', "here"), "line 1, column "),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/plan"])
def test_json_is_read_strictly(api, path, change, told):
    body = json.dumps(spec_with(name="here", seed=7))
    assert change[0] in body
    assert told in problem(post(api, body.replace(*change), path), 422, "json_invalid")["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_know_are_refused(api, number):
    body = json.dumps(spec_with(method={"mask_ratio": "here"}))
    assert post(api, body.replace('"here"', number)).status_code == 422
    answer = post(api, json.dumps(spec_with(name="here")).replace('"here"', number))
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"kind": "pretrain", "name": ' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"kind": "pretrain", "dataset": ' + b'{"uri":' * 400 + b"1" + b"}" * 401,
        b'{"kind": "pretrain", "seed": ' + b"9" * 5000 + b"}",
        b'{"kind": "pretrain", "seed": ' + b"9" * 4000 + b"}",
        b'{"kind": "\\ud800"}',
        b'{"kind": "pretrain", "\\udfff": 1}',
        b'{"kind": "pretrain", "name": "\\u0000"}',
        b"\xff\xfe\x00",
        b'{"kind": "pretrain", "dataset": {"uri": "file:///a\\u0000b"}}',
        b'{"kind": "pretrain", "dataset": {"uri": "http://[broken"}}',
    ],
    ids=lambda body: body[:40].decode("latin-1") + f"...{len(body)}",
)
def test_a_hostile_body_is_the_senders_fault(api, body):
    answer = post(api, body)
    assert answer.status_code in {400, 422}, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"


# --- who may what -----------------------------------------------------------------------------------------------------


def test_a_viewer_reads_and_changes_nothing(clients, database):
    job_id = add_job(database, owner="viewer")
    assert clients.viewer.get(f"/v1/jobs/{job_id}").status_code == 200
    assert clients.viewer.get("/v1/jobs").status_code == 200
    problem(clients.viewer.post("/v1/jobs", json=SPEC), 403, "forbidden")
    for verb in ("cancel", "pause", "resume", "retry"):
        problem(clients.viewer.post(f"/v1/jobs/{job_id}/{verb}"), 403, "forbidden")
    assert job_of(database, job_id).state == "queued"


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_only_operators_control_the_jobs_of_others(clients, database, verb):
    jobs = [clients.alice.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(3)]
    problem(clients.bob.post(f"/v1/jobs/{jobs[0]}/{verb}"), 404, "job_not_found")
    assert job_of(database, jobs[0]).state == "queued"
    for client, job_id in zip((clients.alice, clients.operator, clients.admin), jobs, strict=True):
        assert client.post(f"/v1/jobs/{job_id}/{verb}").status_code == 200
    assert [e.actor for e in events_of(database, jobs[1])] == ["alice", "operator"]


# --- what is not there ------------------------------------------------------------------------------------------------


def test_an_unknown_job_is_not_found(api):
    for path in ("", "/spec", "/events", "/attempts", "/logs", "/metrics", "/images", "/images/a.png"):
        assert "job-none" in problem(api.get(f"/v1/jobs/job-none{path}"), 404, "job_not_found")["detail"]
    for verb in ("cancel", "pause", "resume", "retry", "stop"):
        problem(api.post(f"/v1/jobs/job-none/{verb}"), 404, "job_not_found")
    problem(api.patch("/v1/jobs/job-none", json={"priority": 1}), 404, "job_not_found")
    for query in ("", "?preview=true", "?with_backbones=true"):
        problem(api.delete(f"/v1/jobs/job-none{query}"), 404, "job_not_found")


def test_unknown_backbones_are_not_found(api):
    problem(api.get("/v1/backbones/none"), 404, "backbone_not_found")
    problem(api.get("/v1/backbones/none/versions/1"), 404, "version_not_found")
    problem(api.get("/v1/backbones/none/versions/one"), 404, "version_not_found")
    problem(api.delete("/v1/backbones/none/versions/one"), 422, "parameter_invalid")
    problem(api.get("/v1/backbones/none/versions/1/files/spec.json"), 404, "version_not_found")


def test_unknown_routes_and_methods_are_problems_too(api):
    problem(api.get("/v1/nothing"), 404, "not_found")
    problem(api.get("/nothing"), 404, "not_found")
    answer = api.put("/v1/jobs")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]
    problem(api.post("/v1/jobs/job-none/begin"), 404, "not_found")


# --- what a job shows -------------------------------------------------------------------------------------------------


def test_a_jobs_spec_makes_the_same_job_again(api):
    job = api.post("/v1/jobs", json=SPEC).json()
    spec = api.get(f"/v1/jobs/{job['id']}/spec").json()
    assert spec == PretrainSpec.parse(SPEC).model_dump(mode="json")
    assert api.post("/v1/jobs", json=spec).json()["spec"] == job["spec"]


def test_a_job_without_a_run_shows_empty_views(api, database):
    job_id = add_job(database)
    for view in ("logs", "attempts", "images"):
        assert api.get(f"/v1/jobs/{job_id}/{view}").json()["items"] == []
    assert api.get(f"/v1/jobs/{job_id}/metrics").json() == {"series": {}}
    assert attempts_of(database, job_id) == []


def test_metrics_are_asked_for_by_key(api, database, mlflow):
    run_id, folder = mlflow.make_run("job-m", "m", {})
    mlflow.runs[run_id].metrics |= {"train/loss": 0.5, "train/lr": 0.1, "rcmae/heartbeat_a1": 1.0}
    mlflow.points = {"train/loss": [MetricPoint(1, 0.9, NOW), MetricPoint(2, 0.5, NOW)]}
    job_id = add_job(database, "running", run_id=run_id, artifact_uri=folder)
    every = api.get(f"/v1/jobs/{job_id}/metrics").json()["series"]
    assert set(every) == {"train/loss", "train/lr"}
    assert [(p["step"], p["value"]) for p in every["train/loss"]] == [(1, 0.9), (2, 0.5)]
    some = api.get(f"/v1/jobs/{job_id}/metrics", params={"key": ["train/loss", "none"]}).json()["series"]
    assert set(some) == {"train/loss", "none"}
    mlflow.reachable = False
    problem(api.get(f"/v1/jobs/{job_id}/metrics"), 503, "unavailable")


def test_a_plan_says_what_a_spec_needs(api, ray):
    plan = api.post("/v1/jobs/plan", json=SPEC).json()
    held_out = DIGITS_IMAGES // HELD_OUT_SHARE
    train = DIGITS_IMAGES - held_out
    assert plan["steps"] == {
        "train_images": train,
        "held_out_images": held_out,
        "steps_per_epoch": train // 64,
        "steps": train // 64 * 2,
    }
    assert plan["gang"] == {"cpus": 2, "gpus": 0}
    assert plan["fits"] == "now"
    assert plan["spec"]["optimization"]["micro_batch_size"] != "auto"
    assert plan["memory_per_worker_bytes"] > 0
    ray.cpus = 1
    impossible = api.post("/v1/jobs/plan", json=SPEC).json()
    assert impossible["fits"] == "never"
    assert "1 in the cluster" in impossible["message"]
    assert api.get("/v1/jobs").json()["items"] == []


def test_a_plan_without_a_cluster_is_unavailable_but_submitting_works(clients, ray, mlflow):
    ray.reachable = mlflow.reachable = False
    assert "Ray" in problem(clients.alice.post("/v1/jobs/plan", json=SPEC), 503, "unavailable")["detail"]
    assert clients.alice.post("/v1/jobs", json=SPEC).status_code == 201
    assert clients.viewer.post("/v1/jobs/plan", json=SPEC).status_code == 503, "viewers may plan"


# --- around it --------------------------------------------------------------------------------------------------------


def test_the_request_id_is_the_callers_where_it_is_a_sane_one(api):
    assert api.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    given = api.get("/v1/nothing", headers={"X-Request-ID": "abc-2"})
    assert problem(given, 404, "not_found")["request_id"] == "abc-2"
    for bad in ("x" * 65, "a\tb", ""):
        made = api.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    ids = {api.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_an_error_of_ours_has_a_request_id_and_no_traceback(clients, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("the-secret-inside")

    monkeypatch.setattr(reading, "show", broken)
    answer = clients.alice.get("/v1/jobs/job-a")
    problem(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_health_needs_no_token_and_readiness_says_what_is_missing(clients, ray, mlflow):
    ray.reachable = mlflow.reachable = False
    assert clients.anonymous.get("/healthz").json() == {"status": "ok"}
    answer = clients.anonymous.get("/readyz")
    assert answer.status_code == 503
    assert [reason.partition(":")[0] for reason in answer.json()["reasons"]] == ["MLflow", "Ray", "controller"]


def test_what_is_there_for_good_is_no_garbage_to_look_for(clients):
    """Else a collection in the middle of the requests takes 0.2 s. What ends gives all of it back."""
    assert gc.get_freeze_count() > 100_000
    with TestClient(clients.anonymous.app):
        pass
    assert gc.get_freeze_count() < 100_000


def test_an_artifact_root_that_is_gone_is_told(clients, api, database, root):
    job_id = add_job(database, "running", artifact_uri=str(root / "run"), attempts=1)
    root.rmdir()
    assert any("storage" in reason for reason in clients.anonymous.get("/readyz").json()["reasons"])
    body = problem(api.get(f"/v1/jobs/{job_id}/logs"), 503, "unavailable")
    assert "check that its disk is mounted" in body["detail"]


def test_docs_come_from_the_service_alone(clients):
    page = clients.anonymous.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page.text)
    assert len(loaded) >= 2
    for url in loaded:
        assert url.startswith("/"), url
        assert not url.startswith("//"), url
        assert clients.anonymous.get(url).status_code == 200
    assert not re.search(r"https?://", page.text)
    assert clients.anonymous.get("/openapi.json").status_code == 200
    assert clients.anonymous.get("/docs/assets/../../app.py").status_code == 404
    problem(clients.anonymous.get("/redoc"), 404, "not_found")


def test_a_job_of_another_artifact_root_is_told_so(api, database):
    job_id = add_job(database, "failed", artifact_uri="/elsewhere/artifacts", run_id="r", attempts=1)
    detail = problem(api.get(f"/v1/jobs/{job_id}/images"), 404, "artifacts_not_here")["detail"]
    assert "/elsewhere/artifacts is not below the artifact root" in detail

"""Jobs over REST and the command line on a live stack: real Ray, MLflow and database."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import pytest
from live import checkpoint_of, make_spec, members, poll, wait, wait_state
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from service.adapters.ray_cluster import RayCluster
from service.client.errors import ApiError
from service.client.server import HOST
from service.jobs.state import State
from trainer.export.verify import compare
from trainer.protocol.request import AttemptRequest
from trainer.spec.job import parse_pretrain


def test_a_followed_job_succeeds_and_shows_its_way(stack, finished):
    job, done = finished
    assert job.state is State.SUCCEEDED
    shown = done.stdout + done.stderr
    for word in (job.id, "queued", "starting", "running", "succeeded", "images/s", "epoch"):
        assert word in shown
    assert [event.state for event in stack.client.events(job.id)] == ["queued", "starting", "running", "succeeded"]
    assert (job.progress.step, job.progress.steps, job.progress.epoch) == (200, 200, 20)
    assert job.progress.eta_s == 0
    assert [(a.number, a.state) for a in stack.client.attempts(job.id)] == [(1, "succeeded")]
    assert job.result.metrics["eval/reconstruction_ratio"] < 1
    run = MlflowClient(stack.mlflow_url).get_run(job.run_id)
    assert run.info.status == "FINISHED"


def test_logs_of_driver_and_ranks(stack, finished):
    job, _ = finished
    page = stack.client.logs(job.id, limit=5)
    lines = list(page.items)
    while page.items:
        page = stack.client.logs(job.id, limit=5, cursor=page.next_cursor)
        lines += page.items
    assert {line.source for line in lines} == {"driver", "rank-0", "rank-1"}
    assert any("Evaluation at step 200" in line.message for line in lines)
    assert len(lines) == len(stack.client.logs(job.id, limit=5000).items)
    only = stack.client.logs(job.id, source="rank-1").items
    assert only
    assert {line.source for line in only} == {"rank-1"}


def test_metrics_and_pictures(stack, finished, tmp_path):
    job, _ = finished
    series = stack.client.metrics(job.id).series
    assert [point.step for point in series["train/loss"]] == list(range(1, 201))
    assert [point.step for point in series["eval/reconstruction_ratio"]] == [0, 100, 200]
    assert series["train/loss"][-1].value < series["train/loss"][0].value
    assert all(0 <= point.value <= 1 for point in series["throughput/data_wait_fraction"])
    pictures = stack.client.images(job.id)
    assert [picture.step for picture in pictures] == [0, 100, 200]
    file = tmp_path / "picture.png"
    file.write_bytes(stack.client.image(job.id, pictures[-1].name))
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width > 400


def test_pulled_backbone_is_the_teachers_encoder(stack, finished, tmp_path):
    job, _ = finished
    out = tmp_path / "backbone"
    done = stack.rcmae("backbones", "pull", "tiny-digits", "--format", "hf", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = checkpoint_of(stack, job)
    result = compare(checkpoint, out)
    assert result["max_abs_difference"] < 1e-5
    assert not any(result[key] for key in result if key.startswith("keys_"))
    teacher, student = (load_file(checkpoint / f"{name}.safetensors") for name in ("teacher", "student"))
    pulled = load_file(out / "model.safetensors")
    name, ours = "encoder.layer.1.intermediate.dense.weight", "blocks.1.mlp.fc1.weight"
    assert pulled[name].numpy().tobytes() == teacher[ours].numpy().tobytes()
    assert pulled[name].numpy().tobytes() != student[ours].numpy().tobytes()
    again = stack.rcmae("backbones", "pull", "tiny-digits", "--format", "hf", "--out", str(out))
    assert again.returncode != 0  # it does not overwrite
    assert load_file(out / "model.safetensors").keys() == pulled.keys()


def test_one_version_with_its_lineage_and_ranges(stack, finished):
    job, _ = finished
    versions = [v for b in stack.client.backbones() if b.name == "tiny-digits" for v in b.versions]
    assert versions == [job.result.backbone.version]
    version = stack.client.version("tiny-digits")
    assert version.job_id == job.id
    assert version.tags["rcmae.dataset_fingerprint"]
    assert {file.path for file in version.files} >= {"hf/config.json", "hf/model.safetensors", "spec.json"}
    weights = next(file for file in version.files if file.path == "hf/model.safetensors")
    headers = {"Authorization": f"Bearer {stack.token}"}
    whole = httpx.get(stack.url + weights.url, headers=headers)
    assert hashlib.sha256(whole.content).hexdigest() == weights.sha256
    assert whole.headers["etag"] == f'"{weights.sha256}"'
    part = httpx.get(stack.url + weights.url, headers=headers | {"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, whole.content[8:16])
    head = httpx.head(stack.url + weights.url, headers=headers)
    assert (head.status_code, head.content, int(head.headers["content-length"])) == (200, b"", weights.size)
    climb = stack.url + f"/v1/backbones/tiny-digits/versions/{version.version}/files/..%2f..%2f..%2frcmae.db"
    assert httpx.get(climb, headers=headers).status_code == 404


def test_resolved_spec_runs_the_same(stack, finished):
    job, _ = finished
    spec = stack.client.spec(job.id)
    assert spec.optimization.micro_batch_size == 80
    assert spec.model_dump(mode="json") == job.spec
    assert stack.client.plan(spec).spec == job.spec


def test_plan_says_what_it_needs(stack):
    plan = stack.client.plan(make_spec(resources={"workers": "auto", "cpus_per_worker": "auto"}))
    assert plan.fits == "now"
    assert plan.spec["resources"]["workers"] == 1
    assert plan.steps.steps_per_epoch == 10
    assert plan.memory_per_worker_bytes > 0
    many = stack.client.plan(make_spec(resources={"workers": 160}))
    assert many.fits == "never"
    assert "CPUs" in many.message


def test_same_idempotency_key_makes_one_job(stack):
    spec = make_spec(name="once", resources={"workers": 160})
    first = stack.client.submit(spec, "key-1")
    assert stack.client.submit(spec, "key-1").id == first.id
    with pytest.raises(ApiError) as error:
        stack.client.submit({**spec, "seed": 5}, "key-1")
    assert (error.value.status, error.value.code) == (422, "idempotency_key_reused")
    # it can never run here, and says so while it waits
    waiting = wait(stack, first.id, lambda job: job.reason == "insufficient_resources")
    assert "160 CPUs" in waiting.message
    assert stack.client.cancel(first.id).state is State.CANCELLED


def test_wrong_requests_are_told_what_is_wrong(stack, tmp_path):
    headers = {"Authorization": f"Bearer {stack.token}"}
    answer = httpx.post(f"{stack.url}/v1/jobs", json=make_spec(optimization={"epocs": 3}), headers=headers)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert problem["problems"][0]["pointer"] == "/optimization/epocs"
    assert "epochs" in problem["problems"][0]["message"]
    assert httpx.get(f"{stack.url}/v1/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(f"{stack.url}/v1/jobs/job-none", headers=headers).json()["code"] == "job_not_found"
    bad = stack.rcmae("submit", str(_file(tmp_path / "bad.yaml", make_spec(seed=-1))))
    assert bad.returncode == 2
    assert "seed" in bad.stdout + bad.stderr


def _file(path: Path, spec: object) -> Path:
    path.write_text(json.dumps(spec))
    return path


def test_cancel_while_starting(stack):
    job = stack.client.submit(make_spec(name="cancel-starting", register_as="never"))
    wait_state(stack, job.id, State.STARTING)
    assert stack.client.cancel(job.id).state is State.CANCELLING
    ended = wait_state(stack, job.id, State.CANCELLED)
    assert ended.reason == "cancelled_by_user"
    assert [event.state for event in stack.client.events(job.id)][-2:] == ["cancelling", "cancelled"]
    # Ray may say STOPPED and start the driver all the same: it reads the command and leaves before it trains.
    poll(lambda: members(stack, "trainer.main") + members(stack, "RayTrainWorker"), lambda found: not found, 120)
    run = f"*/{ended.run_id}/artifacts"
    outcomes = [
        json.loads(file.read_text()) for file in Path(stack.folder.artifact_root).glob(f"{run}/attempts/1/outcome.json")
    ]
    # Or Ray's SIGTERM came before it read that.
    assert all(each["state"] == "cancelled" or each["reason"] == "preempted" for each in outcomes), outcomes
    assert not list(Path(stack.folder.artifact_root).glob(f"{run}/checkpoints/a1/*[1-9]*/manifest.json"))
    assert [attempt.state for attempt in stack.client.attempts(job.id)] == ["cancelled"]
    with pytest.raises(ApiError) as error:
        stack.client.cancel(job.id)
    assert (error.value.status, error.value.code) == (409, "not_allowed_in_state")
    assert not [b for b in stack.client.backbones() if b.name == "never"]


def test_a_paused_and_resumed_job_ends_as_an_undisturbed_one_bit_for_bit(stack, finished):
    undisturbed, _ = finished
    job = stack.client.submit({**undisturbed.spec, "name": "paused", "register_as": None})
    wait(stack, job.id, lambda seen: seen.progress is not None and seen.progress.step > 3)
    assert stack.client.pause(job.id).state in {State.PAUSING}
    paused = wait_state(stack, job.id, State.PAUSED)
    attempt = stack.client.attempts(job.id)[-1]
    assert attempt.state == "paused"
    assert 0 < int(attempt.checkpoint.rpartition("/")[2]) < 200
    assert paused.ended_at is None
    assert stack.client.resume(job.id).state is State.QUEUED
    ended = wait_state(stack, job.id, State.SUCCEEDED)
    assert ended.attempts == 2
    final = [checkpoint_of(stack, j) for j in (undisturbed, ended)]
    for name in ("student", "teacher", "optimizer"):
        first, second = ((folder / f"{name}.safetensors").read_bytes() for folder in final)
        assert first == second, name
    curves = [stack.client.metrics(j.id, ["train/loss"]).series["train/loss"] for j in (undisturbed, ended)]
    assert [(p.step, p.value) for p in curves[0]] == [(p.step, p.value) for p in curves[1]]


def test_bad_data_fails_at_once_and_says_so(stack, tmp_path):
    (tmp_path / "broken.jpg").write_text("not an image")
    spec = make_spec(name="bad-data", dataset={"uri": str(tmp_path)}, resources={"workers": 1})
    job = wait_state(stack, stack.client.submit(spec).id, State.FAILED)
    assert job.reason == "data_error"
    assert "broken.jpg" in job.message
    assert job.attempts == 1


def test_the_end_of_the_log_of_an_attempt_that_cannot_start_is_known(stack):
    ray = RayCluster(f"http://{HOST}:{stack.state.ports.ray_dashboard}", stack.folder.ray_token, "/no/such/python")
    submission = "cannot-start-a1"
    ray.submit(
        submission,
        AttemptRequest(
            job_id="cannot-start", attempt=1, run_id="r", tracking_uri="http://m", artifact_uri="/a",
            spec=parse_pretrain(make_spec()),
        ),
    )  # fmt: skip
    poll(lambda: ray.state(submission), lambda state: state.ended, 120)
    assert "/no/such/python" in ray.log_tail(submission)
    assert ray.log_tail("never-submitted-a1").startswith("(its log could not be read: Ray answered ")
    ray.delete(submission)
    ray.close()

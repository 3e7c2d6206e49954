"""A live stack whose artifacts lie in S3, seen through a proxy that can be closed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator

import httpx
import mlflow
import pyarrow.parquet as pq
import pytest
from image_sets import place, samples, write_parquet
from live import final_weights, make_spec, poll, wait, wait_state
from local_stack import Stack, rcmae, running_stack
from s3_server import FaultProxy

from service.adapters.storage import Artifacts
from service.backbones.signature_schemas import SIGNATURE_FILE
from service.client.server import HOST
from service.embedded.folder import Folder
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.data.dataset import open_images
from trainer.export import verify
from trainer.protocol.embeddings import SCHEMA, part_file
from trainer.spec.dataset import DIGITS, DatasetSpec


@pytest.fixture(scope="module")
def proxy(s3) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def s3_stack(s3, proxy, tmp_path_factory) -> Iterator[Stack]:
    root = f"{s3.bucket('stack')}/some/artifacts"
    state_dir = tmp_path_factory.mktemp("s3-stack") / "state"
    with running_stack(state_dir, "--artifact-root", root, **s3.environment(proxy.endpoint)) as stack:
        yield stack


@pytest.fixture(scope="module")
def finished(s3_stack) -> JobView:
    job = s3_stack.client.submit(make_spec(name="in-s3", register_as="in-s3"))
    return wait_state(s3_stack, job.id, State.SUCCEEDED)


@pytest.fixture
def artifacts(s3, use_s3, s3_stack) -> Artifacts:
    use_s3(s3.environment())
    return Artifacts(s3_stack.folder.artifact_root)


def under_way(stack: Stack, name: str) -> JobView:
    """A job past its first checkpoint."""
    job = stack.client.submit(make_spec(name=name))
    return wait(stack, job.id, lambda seen: seen.progress is not None and seen.progress.step > 25)


# --- before anything starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bucket", "changed", "said"),
    [
        ("nobody-made-it", {}, "there is no such bucket"),
        (
            "stack-errors",
            {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"},
            "credentials were refused (SignatureDoesNotMatch)",
        ),
        ("stack-errors", {"AWS_ACCESS_KEY_ID": "somebody-else"}, "credentials were refused (InvalidAccessKeyId)"),
        ("stack-errors", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "cannot be reached"),
    ],
)
def test_an_artifact_root_that_cannot_be_used_is_told_and_nothing_starts(s3, tmp_path, bucket, changed, said):
    s3.bucket("stack-errors")
    environment = s3.environment() | changed
    failed = rcmae(tmp_path / "state", "up", "--detach", "--artifact-root", f"s3://{bucket}/x", **environment)
    assert failed.returncode == 1
    told = " ".join(failed.stderr.split())
    assert f"the artifact root cannot be used: s3://{bucket}/x: " in told
    assert said in told
    assert not any(value in told for value in changed.values() if not value.startswith("http"))
    assert "Traceback" not in failed.stderr
    state = Folder(tmp_path / "state").load()
    assert (state.parts, state.artifact_root) == ({}, None)


# --- a whole job ------------------------------------------------------------------------------------------------------


def test_everything_of_a_job_lies_in_s3(s3, s3_stack, finished):
    fs, root = s3.filesystem(), s3_stack.folder.artifact_root.removeprefix("s3://")
    files = {path.removeprefix(root) for path in fs.find(root)}
    (run,) = {file.partition(finished.run_id)[0] + finished.run_id for file in files if finished.run_id in file}
    below = {file.removeprefix(f"{run}/artifacts/") for file in files if file.startswith(run)}
    assert {
        "attempts/1/outcome.json",
        "attempts/1/logs/driver.0001.jsonl",
        "attempts/1/logs/rank-1.0001.jsonl",
    } <= below
    assert {f"checkpoints/a1/00000200/{name}" for name in ("manifest.json", "teacher.safetensors")} <= below
    assert "images/reconstruction_00000200.png" in below
    assert any(file.endswith("/artifacts/hf/model.safetensors") for file in files)
    assert not list((s3_stack.state_dir / "artifacts").glob("**/*"))


def test_images_and_artifacts_of_a_job_both_in_s3(s3, s3_stack, tmp_path):
    bucket, folder = s3.bucket("images"), write_parquet(tmp_path / "set", samples(60))
    s3.filesystem().put(f"{folder}/", f"{bucket}/set/", recursive=True)
    spec = make_spec(
        name="images-in-s3",
        dataset={"uri": f"{bucket}/set/train-*.parquet"},
        model={"in_chans": 3},
        optimization={"epochs": 2, "global_batch_size": 18},
        resources={"loader_processes": 1},
        evaluation={"every_epochs": 2, "probes": ["linear"]},
        register_as="images-in-s3",
    )
    job = wait_state(s3_stack, s3_stack.client.submit(spec).id, State.SUCCEEDED)
    assert (job.progress.step, job.progress.steps) == (6, 6)
    assert 0 <= job.result.metrics["eval/linear_top1"] <= 1
    local = open_images(DatasetSpec(uri=folder), 3, (32, 32), place(tmp_path))
    fingerprint = s3_stack.client.version("images-in-s3").tags["rcmae.dataset_fingerprint"]
    assert fingerprint == local.index.fingerprint
    kept = s3_stack.state_dir / "cache"
    assert {entry.name for entry in kept.iterdir()} == {"staged", "indexes", "decoded", "untrained"}


def test_features_lie_in_s3_and_come_through_the_service(s3, s3_stack, finished, tmp_path):
    ref = finished.result.backbone
    job = s3_stack.client.embed(f"{ref.name}:{ref.version}", DIGITS, rows_per_file=600)
    done = wait_state(s3_stack, job.id, State.SUCCEEDED)
    stored = s3.filesystem().find(s3_stack.folder.artifact_root.removeprefix("s3://"))
    assert sum(f"{done.run_id}/artifacts/embeddings/part-0000" in path for path in stored) == 3
    listed = s3_stack.client.download_files(job.id, tmp_path, prefix="embeddings/")
    assert [file.path for file in listed] == [*map(part_file, range(3)), SCHEMA]
    tables = [pq.read_table(tmp_path / part_file(number), page_checksum_verification=True) for number in range(3)]
    assert [table.num_rows for table in tables] == [600, 600, 597]


def test_logs_metrics_and_pictures(s3_stack, finished):
    client = s3_stack.client
    lines, cursor = [], None
    while True:
        page = client.logs(finished.id, limit=7, cursor=cursor)
        if not page.items:
            break
        lines, cursor = lines + page.items, page.next_cursor
    assert {line.source for line in lines} == {"driver", "rank-0", "rank-1"}
    assert len(lines) == len(client.logs(finished.id, limit=5000).items)
    assert [point.step for point in client.metrics(finished.id).series["train/loss"]] == list(range(1, 201))
    assert [picture.step for picture in client.images(finished.id)] == [0, 100, 200]
    assert client.image(finished.id, client.images(finished.id)[-1].name).startswith(b"\x89PNG")


def test_the_backbone_is_had_over_rest(s3_stack, finished, artifacts, tmp_path, monkeypatch):
    version = s3_stack.client.version("in-s3")
    assert version.job_id == finished.id
    weights = next(file for file in version.files if file.path == "hf/model.safetensors")
    headers = {"Authorization": f"Bearer {s3_stack.token}"}
    whole = httpx.get(s3_stack.url + weights.url, headers=headers)
    assert hashlib.sha256(whole.content).hexdigest() == weights.sha256
    part = httpx.get(s3_stack.url + weights.url, headers=headers | {"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, whole.content[8:16])

    pulled = s3_stack.rcmae("backbones", "pull", "in-s3", "--format", "hf", "--out", str(tmp_path / "hf"))
    assert pulled.returncode == 0, pulled.stderr
    newest = s3_stack.client.attempts(finished.id)[-1].checkpoint
    (checkpoint,) = (
        f"{artifacts.root}/{experiment}/{finished.run_id}/artifacts/{newest}"
        for experiment in artifacts.folders(artifacts.root)
    )
    monkeypatch.setattr(sys, "argv", ["verify", "--checkpoint", checkpoint, "--backbone", str(tmp_path / "hf")])
    assert verify.main() == 0


@pytest.mark.usefixtures("finished", "artifacts")
def test_mlflow_s_own_client_loads_the_version(s3_stack, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", s3_stack.mlflow_url)
    found = mlflow.artifacts.download_artifacts("models:/in-s3/1", dst_path=str(tmp_path))
    kept = [file for file in s3_stack.client.version("in-s3").files if file.path != SIGNATURE_FILE]
    assert len(kept) > 10
    for file in kept:
        data = (tmp_path / found / file.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.sha256


def test_the_artifact_root_is_shown_and_kept(s3, s3_stack):
    root = s3_stack.folder.artifact_root
    assert json.loads(s3_stack.rcmae("status", "--json").stdout)["artifact_root"] == root
    again = s3_stack.rcmae("up", "--detach", **s3.environment())
    assert again.returncode == 0
    assert root in again.stdout
    other = s3_stack.rcmae("up", "--detach", "--artifact-root", "s3://stack/elsewhere", **s3.environment())
    assert other.returncode == 1
    assert f"keeps its artifacts in {root}" in " ".join(other.stderr.split())
    examined = json.loads(s3_stack.rcmae("doctor", "--json", **s3.environment()).stdout)
    assert {check["name"]: check["level"] for check in examined}["artifacts"] == "fine"
    wrong = s3.environment(AWS_SECRET_ACCESS_KEY="a-wrong-secret")
    examined = json.loads(s3_stack.rcmae("doctor", "--json", **wrong).stdout)
    (check,) = (check for check in examined if check["name"] == "artifacts")
    assert check["level"] == "broken"
    assert "the credentials were refused" in check["remedy"]


# --- jobs that are stopped, and a storage that goes away --------------------------------------------------------------


@pytest.mark.slow
def test_a_paused_job_resumes_from_its_checkpoint_in_s3(s3_stack, finished, artifacts):
    job = under_way(s3_stack, "paused-in-s3")
    s3_stack.client.pause(job.id)
    wait_state(s3_stack, job.id, State.PAUSED)
    s3_stack.client.resume(job.id)
    ended = wait_state(s3_stack, job.id, State.SUCCEEDED)
    assert ended.attempts == 2
    log = "\n".join(line.message for line in s3_stack.client.logs(job.id, attempt=2, source="rank-0").items)
    assert "Resuming at step" in log
    assert final_weights(artifacts, s3_stack, ended) == final_weights(artifacts, s3_stack, finished)


@pytest.mark.slow
def test_a_storage_that_is_away_for_twenty_seconds_ends_no_job(s3_stack, finished, artifacts, proxy):
    job = under_way(s3_stack, "away")
    with proxy.away(20):
        poll(lambda: httpx.get(f"{s3_stack.url}/readyz").json()["reasons"], bool)
        headers = {"Authorization": f"Bearer {s3_stack.token}"}
        answer = httpx.get(f"{s3_stack.url}/v1/jobs/{job.id}/logs", headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert s3_stack.client.job(job.id).state is State.RUNNING
    ended = wait_state(s3_stack, job.id, State.SUCCEEDED)
    assert ended.attempts == 1
    assert final_weights(artifacts, s3_stack, ended) == final_weights(artifacts, s3_stack, finished)
    log = [line for line in s3_stack.client.logs(job.id, limit=5000).items if line.source == "rank-0"]
    assert any("Evaluation at step 200" in line.message for line in log), "no lines are lost"


@pytest.mark.slow
def test_training_goes_on_without_its_storage_and_the_last_checkpoint_is_what_fails(s3_stack, proxy):
    job = under_way(s3_stack, "gone")
    proxy.close()
    try:
        wait(s3_stack, job.id, lambda seen: seen.progress.step == seen.progress.steps, 300)
        run = mlflow.MlflowClient(s3_stack.mlflow_url).get_run(job.run_id)
        assert "was not stored: s3://stack/some/artifacts/" in run.data.tags["rcmae.notice"]
        # The attempt gives up in minutes; its outcome cannot be stored, and the service waits for the storage.
        submission = f"{job.id}-a1"
        ray = f"http://{HOST}:{s3_stack.state.ports.ray_dashboard}/api/jobs/{submission}"
        headers = {"Authorization": f"Bearer {s3_stack.folder.ray_token.read_text()}"}
        poll(lambda: httpx.get(ray, headers=headers).json()["status"], lambda seen: seen == "FAILED", 500)
        log = httpx.get(f"{ray}/logs", headers=headers).json()["logs"]
        assert "storage_error: s3://stack/some/artifacts/" in log
        time.sleep(3)
        assert s3_stack.client.job(job.id).state is State.RUNNING, "nothing is known while the storage is away"
    finally:
        proxy.open()
    ended = wait_state(s3_stack, job.id, State.SUCCEEDED, timeout_s=300)
    first, second = s3_stack.client.attempts(job.id)
    assert first.state in {"failed", "lost"}
    assert "storage_error" in f"{first.reason} {first.message}"
    assert (second.state, ended.attempts) == ("succeeded", 2)

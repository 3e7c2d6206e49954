"""Backbones of a live stack: pulled while the API is killed, published from a kept checkpoint, named and deleted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import urllib.request

import httpx
import pytest
from handmade import registered, write_weights
from live import poll
from local_stack import Stack
from mlflow.tracking import MlflowClient

from service.client.errors import ApiError
from service.jobs.schemas import JobView

MEBIBYTES = 96


@pytest.fixture
def job(finished: tuple[JobView, object]) -> JobView:
    """It has several checkpoints."""
    return finished[0]


@pytest.fixture
def mlflow(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = stack.mlflow_url
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def test_a_jobs_version_is_signed_by_the_key_of_the_stack(stack, job, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    ref = job.result.backbone
    version = poll(lambda: stack.client.version(ref.name, ref.version), lambda found: found.signature is not None)
    command = ["openssl", "pkey", "-in", stack.folder.signing_key, "-pubout", "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert version.signature.key_id == hashlib.sha256(der).hexdigest()[:16]
    stack.client.pull(ref.name, tmp_path / "pulled", version=ref.version, verify=True)
    done = stack.rcmae("backbones", "verify", str(tmp_path / "pulled"), "--json")
    assert json.loads(done.stdout)["key"] == version.signature.key_id


@pytest.mark.slow
def test_a_pull_goes_on_when_the_api_is_killed_in_the_middle_of_it(stack, job, mlflow, tmp_path):
    experiment = mlflow.get_run(job.run_id).info.experiment_id
    number, folder = registered(mlflow, "tiny-digits", job.id, experiment)
    digest = write_weights(folder, MEBIBYTES)
    before = stack.state.parts["api"]
    came, killed_at = [], []

    def progress(done: int, total: int) -> None:
        if done > total / 3 and not killed_at:
            os.kill(before.pid, signal.SIGKILL)
            killed_at.append(done)
        came.append(done)

    version = stack.client.pull("tiny-digits", tmp_path / "big", version=number, progress=progress)
    assert version.version == number
    assert 0 < killed_at[0] < came[-1]
    assert stack.state.parts["api"] != before
    assert came == sorted(came), "it went on, and did not begin again"
    with (tmp_path / "big/model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    stack.client.delete_version("tiny-digits", number)
    poll(folder.exists, lambda there: not there)


def test_what_was_registered_by_hand_is_not_served(stack, job, mlflow, tmp_path):
    experiment = mlflow.get_run(job.run_id).info.experiment_id
    before = stack.client.backbone("tiny-digits").versions
    elsewhere = mlflow.create_experiment(f"elsewhere-{job.id}", artifact_location=str(tmp_path / "outside"))
    made = [
        registered(mlflow, "tiny-digits", None, experiment),
        registered(mlflow, "tiny-digits", "job-of-nobody", experiment),
        registered(mlflow, "tiny-digits", job.id, elsewhere),
    ]
    for number, folder in made:
        write_weights(folder, 1)
        for reference in (str(number), "latest", "main"):
            shown = httpx.get(
                f"{stack.url}/v1/backbones/tiny-digits/versions/{reference}/files/hf/model.safetensors",
                headers={"Authorization": f"Bearer {stack.token}", "Range": "bytes=0-7"},
            )
            assert shown.status_code == 404 or shown.content != bytes(8), reference
        with pytest.raises(ApiError, match="there is no version"):
            stack.client.version("tiny-digits", number)
        hub = f"{stack.url}/hf/rcmae/tiny-digits/resolve/v{number}/model.safetensors"
        assert httpx.get(hub, headers={"Authorization": f"Bearer {stack.token}"}).status_code == 404
    assert stack.client.backbone("tiny-digits").versions == before


@pytest.mark.slow
def test_an_earlier_checkpoint_is_published_named_pulled_and_deleted(stack, job, tmp_path):
    first = list(stack.client.checkpoints(job.id))[-1]
    done = stack.rcmae(
        "backbones", "publish", job.id, "--as", "pulled-early", "--checkpoint", first.path, "--follow", "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    published = json.loads(done.stdout)
    assert published["result"]["backbones"] == [{"name": "pulled-early", "version": 1}]
    assert "pulled-early" in [each.name for each in stack.client.job(job.id).result.backbones]
    version = stack.client.version("pulled-early", 1)
    assert (version.checkpoint_step, version.trained_by, version.job_id) == (first.step, job.id, published["id"])
    assert {each.name for each in stack.client.backbones(job=job.id)} == {"tiny-digits", "pulled-early"}

    assert stack.rcmae("backbones", "alias", "pulled-early:1", "champion").returncode == 0
    refused = stack.rcmae("backbones", "delete", "pulled-early:1", "--yes")
    assert refused.returncode == 1
    assert "@champion" in refused.stderr
    out = tmp_path / "early"
    assert (
        stack.rcmae("backbones", "pull", "pulled-early@champion", "--format", "all", "--out", str(out)).returncode == 0
    )
    assert (out / "README.md").is_file()
    assert stack.rcmae("backbones", "alias", "pulled-early", "champion", "--remove").returncode == 0
    assert stack.rcmae("backbones", "delete", "pulled-early:1", "--yes").returncode == 0
    assert "pulled-early" not in [backbone.name for backbone in stack.client.backbones()]
    poll(
        lambda: [each.name for each in stack.client.job(job.id).result.backbones], lambda left: left == ["tiny-digits"]
    )


def test_an_archive_is_a_tar_that_checks_itself(stack, job, tmp_path):
    assert job.result.backbone
    url = f"{stack.url}/v1/backbones/tiny-digits/versions/{job.result.backbone.version}/archive?format=hf"
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {stack.token}"})
    with urllib.request.urlopen(asked) as answer:
        (tmp_path / "it.tar").write_bytes(answer.read())
    script = "tar xf it.tar && cd tiny-digits-v* && sha256sum --check --ignore-missing SHA256SUMS"
    assert "hf/model.safetensors: OK" in stack.bash(script, tmp_path, timeout=60)

"""Features of a dataset's images on a live stack: computed, downloaded, and read by others' tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from live import members, poll, wait
from sklearn.datasets import load_digits

from service.jobs.state import State
from trainer.protocol.embeddings import SCHEMA

URI = "builtin://digits"


def read(folder: Path) -> dict[str, np.ndarray]:
    """The columns of all files, in their order."""
    tables = [pq.read_table(file, page_checksum_verification=True) for file in sorted(folder.glob("*.parquet"))]
    return {
        name: np.concatenate([np.stack(table[name].to_numpy()) for table in tables]) for name in tables[0].column_names
    }


def test_features_of_a_version_are_downloaded_by_one_command_and_tell_classes_apart(stack, finished, tmp_path):
    ref = finished[0].result.backbone
    done = stack.rcmae(
        "embed", f"{ref.name}:{ref.version}", "--dataset", URI, "--patch-tokens", "--set", "rows_per_file=1000",
        "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads(done.stdout)
    found = job["result"]["embeddings"]
    assert (found["files"], found["dataset"]["images"], found["backbone"]["title"]) == (2, 1797, "tiny-digits:1")
    assert job["progress"]["embedded"] == job["progress"]["total"] == 1797
    columns = read(tmp_path / "out" / "embeddings")
    assert columns["features"].shape == (1797, found["width"])
    assert columns["patch_tokens"].shape == (1797, np.prod(found["patch_tokens"]))
    labels = load_digits().target
    assert np.array_equal(columns["label"].astype(int), labels)
    features = columns["features"] - columns["features"].mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -1)
    assert (labels[similarity.argmax(axis=1)] == labels).mean() > 0.4  # ten classes: 0.1 by chance

    listed = [file.path for file in stack.client.files(job["id"], prefix="embeddings/")]
    assert listed == ["embeddings/part-00000.parquet", "embeddings/part-00001.parquet", SCHEMA]
    again = stack.rcmae("jobs", "files", job["id"], "--prefix", "embeddings/", "--download", str(tmp_path / "out"))
    assert (again.returncode, "3 files" in again.stderr) == (0, True)
    stack.client.download(job["id"], SCHEMA, tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == found


def test_workers_share_the_files_and_a_checkpoint_gives_what_its_version_gives(stack, finished, tmp_path):
    job, _ = finished
    ref, more = job.result.backbone, {"rows_per_file": 300, "dtype": "float16"}
    one = stack.client.embed(f"{ref.name}:{ref.version}", URI, **more)
    two = stack.client.embed({"job": job.id}, URI, resources={"workers": 2, "cpus_per_worker": 1}, **more)
    for each, folder in ((one, "one"), (two, "two")):
        assert stack.client.wait(each.id, timeout_s=300).state is State.SUCCEEDED
        stack.client.download_files(each.id, tmp_path / folder, prefix="embeddings/")
    first, second = (read(tmp_path / folder / "embeddings") for folder in ("one", "two"))
    assert first["features"].dtype == np.float16
    assert list(first["key"]) == list(second["key"])
    assert np.abs(first["features"].astype(np.float32) - second["features"].astype(np.float32)).max() < 1e-2


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_goes_on_after_the_files_that_are_there(stack, finished, tmp_path):
    ref = finished[0].result.backbone
    job = stack.client.embed(f"{ref.name}:{ref.version}", URI, rows_per_file=20)
    poll(lambda: [file for file in stack.client.files(job.id) if file.path.endswith(".parquet")], bool)
    for process in poll(lambda: members(stack, "RayTrainWorker"), bool):
        process.kill()
    kept = {file.path: file.etag for file in stack.client.files(job.id) if file.path.endswith(".parquet")}
    ended = wait(stack, job.id, lambda found: found.state.terminal)
    assert (ended.state, ended.attempts) == (State.SUCCEEDED, 2), ended.message
    now = {file.path: file.etag for file in stack.client.files(job.id)}
    assert kept.items() <= now.items()
    assert len(now) == 91  # 90 files and the schema
    stack.client.download_files(job.id, tmp_path)
    assert len(read(tmp_path / "embeddings")["key"]) == 1797

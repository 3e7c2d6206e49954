"""Jobs that compute features: what they name, how far they are, what they leave, and who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backbone_files import Registry
from command_line import rcmae
from evaluations import SIZES
from kept_checkpoints import CHECKPOINTS, refused, trained
from service_fakes import add_job, job_of
from service_world import World

from service.client.subjects import subject
from trainer.protocol import names
from trainer.protocol.embeddings import SCHEMA, Embeddings, part_file
from trainer.protocol.evaluation import Evaluated, EvaluatedImages
from trainer.protocol.outcome import Outcome
from trainer.protocol.progress import Newest
from trainer.protocol.request import VersionSource
from trainer.spec import metric_keys

URI = "builtin://digits"


def spec_of(backbone: Any, **over: Any) -> dict[str, Any]:
    return {"kind": "embed", "backbone": backbone, "dataset": {"uri": URI}} | over


def described(**over: Any) -> Embeddings:
    """What the schema of a job's files says."""
    backbone = Evaluated(title="digits:1", name="digits", version=1, **SIZES)
    values: dict[str, Any] = {
        "backbone": backbone,
        "weights": "0" * 64,
        "dataset": EvaluatedImages(uri=URI, title="<b>digits</b>", images=1797, fingerprint="f" * 64),
        "labels": 1700,
        "pooling": "mean",
        "layer": 12,
        "precision": "fp32",
        "mean": (0.5,),
        "std": (0.25,),
        "value_range": "uint8: 0 to 255",
        "dtype": "float32",
        "width": 192,
        "patch_tokens": (16, 192),
        "rows_per_file": 512,
        "files": 4,
    }
    return Embeddings.model_validate(values | over)


@pytest.fixture
def registry(world, mlflow, root) -> Registry:
    found = Registry(world.database, mlflow, root)
    for number in (1, 2):
        found.add("digits", number)
    found.set_alias("digits", "champion", 1)
    return found


def completed(served: Any, world: World, found: Embeddings | None) -> str:
    """A job that has succeeded and left its files."""
    job_id: str = served.post("/v1/jobs", json=spec_of("digits", patch_tokens=True)).json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    folder = Path(job_of(world.database, job_id).artifact_uri)
    (folder / names.EMBEDDINGS).mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (folder / part_file(number)).write_bytes(b"x" * 2048)
    (folder / names.EMBEDDINGS / ".tmp-0123").write_bytes(b"half a file of a process that was killed")
    if found:
        (folder / SCHEMA).write_text(found.model_dump_json())
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    return job_id


# --- submission -------------------------------------------------------------------------------------------------------


def test_a_name_is_the_version_that_it_means_at_the_submission(served, world, ray, registry):
    planned = served.post("/v1/jobs/plan", json=spec_of("digits")).json()
    assert (planned["spec"]["backbone"], planned["fits"]) == ("digits:1", "now")
    patches = served.post("/v1/jobs/plan", json=spec_of("digits", patch_tokens=True, rows_per_file=8192)).json()
    assert patches["memory_per_worker_bytes"] > planned["memory_per_worker_bytes"] > 2**30
    job = served.post("/v1/jobs", json=spec_of("digits")).json()
    assert (job["kind"], job["name"], job["spec"]["backbone"]) == ("embed", "embed-digits", "digits:1")
    registry.set_alias("digits", "champion", 2)
    world.rounds()
    (request,) = ray.requests
    assert isinstance(request.source, VersionSource)
    assert (request.source.name, request.source.version) == ("digits", 1)


@pytest.mark.usefixtures("registry")
def test_what_cannot_be_computed_is_refused_with_the_field_and_what_to_do(served, world, root):
    source = trained(world, root)
    for spec, field, text in (
        (spec_of("letters"), "backbone", "there is no backbone letters"),
        (spec_of({"job": source, "checkpoint": "checkpoints/a1/00000300"}), "backbone.checkpoint", CHECKPOINTS[1]),
        (spec_of("digits", features={"layer": "all"}), "features.layer", "name one block"),
        (spec_of("digits", dataset={"uri": "photos"}), "dataset.uri", "absolute path"),
    ):
        for path in ("/v1/jobs", "/v1/jobs/plan"):
            refused(served.post(path, json=spec), field, text)


# --- its life ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registry")
def test_how_far_it_is_is_told_in_images(served, world):
    job_id = served.post("/v1/jobs", json=spec_of("digits")).json()["id"]
    world.rounds()
    world.run_attempt(job_id)
    run = world.mlflow.runs[job_of(world.database, job_id).run_id]
    newest = Newest(attempt=1, step=250, values={metric_keys.SAMPLES: 250.0}, images_per_s=50.0)
    notices = '[{"code": "weights_adapted", "message": "The mean was assumed."}]'
    run.tags |= {names.TAG_STEPS: "1000", names.TAG_NEWEST: newest.model_dump_json(), names.TAG_DATA_NOTICES: notices}
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    warnings = [{"code": "weights_adapted", "message": "The mean was assumed."}]
    assert job["progress"] == {
        "embedded": 250, "total": 1000, "images_per_s": 50.0, "eta_s": 15.0, "warnings": warnings,
    }  # fmt: skip
    assert "computing features" in job["message"]
    world.end_attempt(job_id, Outcome(state="failed", reason="out_of_memory", message="Killed."))
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert (job["progress"]["images_per_s"], job["progress"]["eta_s"]) == (None, None)


@pytest.mark.usefixtures("registry")
def test_what_its_files_hold_is_the_result(served, world):
    found = described()
    job_id = completed(served, world, found)
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert Embeddings.model_validate(job["result"]["embeddings"]) == found
    assert job["message"] == "1,797 images of <b>digits</b> through digits:1: 192 values each, in 4 files."
    paths = [file["path"] for file in served.get(f"/v1/jobs/{job_id}/files").json()["items"]]
    assert paths == [*(part_file(number) for number in range(4)), SCHEMA]
    assert served.get(f"/v1/jobs/{job_id}/files/{names.EMBEDDINGS}/.tmp-0123").status_code == 404


# --- the page and the command line ------------------------------------------------------------------------------------


def test_its_page_names_the_files_and_how_to_read_them(browsers, database, root):
    (root / "run" / names.EMBEDDINGS).mkdir(parents=True)
    (root / "run" / part_file(3)).write_bytes(b"x" * 2048)
    result = {"embeddings": described().model_dump(mode="json")}
    spec = spec_of("digits:1", patch_tokens=True)
    job_id = add_job(database, "succeeded", spec, owner="alice", artifact_uri=str(root / "run"), result=result)
    page = browsers.alice.get(f"/jobs/{job_id}/overview").text
    link = f"/v1/jobs/{job_id}/files/embeddings/part-00003.parquet"
    for text in (
        f'href="{link}"', "2.0 KiB", "1,797", "1,700", "digits:1", "pyarrow", f"rcmae jobs files {job_id}",
        "patch_tokens", "16 of 192 values",
    ):  # fmt: skip
        assert text in page, text
    assert "<b>digits</b>" not in page
    assert browsers.alice.get(link).content == b"x" * 2048


def test_its_page_says_how_far_it_is_and_that_no_file_is_there_yet(browsers, database):
    progress = {"embedded": 250, "total": 1000, "images_per_s": 50.0, "eta_s": 15.0, "warnings": []}
    job_id = add_job(database, "running", spec_of("digits"), owner="alice", progress=progress)
    page = browsers.alice.get(f"/jobs/{job_id}/overview").text
    assert "They appear as they are written." in page
    assert "250/1,000 images" in page
    assert "250/1,000 images" in browsers.alice.get("/jobs").text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("digits", "digits"),
        ("digits:3", "digits:3"),
        ("job-7f3k2m@best", "job-7f3k2m@best"),
        ("job-7f3k2m", {"job": "job-7f3k2m"}),
        ("job-7f3k2m:a1/00000100", {"job": "job-7f3k2m", "checkpoint": "checkpoints/a1/00000100"}),
        ("job-7f3k2m:checkpoints/a1/00000100", {"job": "job-7f3k2m", "checkpoint": "checkpoints/a1/00000100"}),
        ("s3://models/vit", {"uri": "s3://models/vit"}),
        ("/models/vit.pth", {"uri": "/models/vit.pth"}),
        ("./vit", {"uri": str(Path("vit").absolute())}),
    ],
)
def test_a_network_on_the_command_line_is_a_version_a_checkpoint_or_a_path(text, meant):
    assert subject(text) == meant


@pytest.mark.usefixtures("registry", "address")
def test_the_command_submits_and_plans(served, capsys):
    status, shown, _ = rcmae(capsys, "embed", "digits:2", "--dataset", URI, "--pooling", "cls", "--patch-tokens")
    assert (status, "rcmae jobs files job-" in shown) == (0, True)
    (job,) = served.get("/v1/jobs").json()["items"][:1]
    assert (job["spec"]["backbone"], job["spec"]["features"]["pooling"], job["spec"]["patch_tokens"]) == (
        "digits:2", "cls", True,
    )  # fmt: skip
    count = len(served.get("/v1/jobs").json()["items"])
    status, shown, _ = rcmae(
        capsys, "embed", "digits", "--dataset", URI, "--layer", 1, "--set", "rows_per_file=5", "--plan"
    )
    assert (status, "needs 4 CPUs" in shown) == (0, True)
    status, _, told = rcmae(capsys, "embed", "letters", "--dataset", URI)
    assert (status, "there is no backbone letters" in told) == (2, True)
    assert len(served.get("/v1/jobs").json()["items"]) == count

"""A backbone that others have trained, imported on a live stack: pulled in other libraries' formats, and compared."""

from __future__ import annotations

import json

import numpy
import onnxruntime
import pytest
import torch
from foreign import stored, vit_mae
from live import members, poll, wait
from safetensors.torch import load_file
from transformers import ViTMAEModel, ViTModel

from service.client.errors import ApiError
from service.jobs.state import State

ORIGIN = ("--origin", "facebook/vit-mae-tiny", "--origin-url", "https://huggingface.co/facebook/vit-mae-tiny")


def test_a_folder_of_transformers_becomes_a_version_with_the_features_of_the_original(stack, finished, tmp_path):
    source = tmp_path / "vit-mae-tiny"
    stored(vit_mae(), source)
    done = stack.rcmae(
        "backbones", "import", str(source), "--as", "imported-vit", "--license", "cc-by-nc-4.0", *ORIGIN,
        "--trained-on", "ImageNet-1k", "--follow", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads(done.stdout)
    assert job["result"]["backbones"] == [{"name": "imported-vit", "version": 1}]
    assert job["progress"] == {"phase": "registering", "done": 4, "phases": 4}
    version = stack.client.version("imported-vit")
    assert (version.method, version.origin, version.license) == ("imported", "facebook/vit-mae-tiny", "cc-by-nc-4.0")
    assert (version.job_id, version.trained_by) == (job["id"], job["id"])
    assert version.formats == ["timm", "hf", "hf-mae", "onnx", "torch_export"]

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    original = ViTMAEModel.from_pretrained(source, mask_ratio=0.0).eval()
    with torch.no_grad():
        # In the order of the image, and without a mask.
        expected = original(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    for form in ("hf", "timm", "onnx"):
        stack.client.pull("imported-vit", tmp_path / form, form=form)
    with torch.no_grad():
        hf = ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()(images).last_hidden_state
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    onnx = torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])
    assert expected.std() > 0.1
    assert (hf - expected).abs().max() < 1e-5
    assert (onnx - expected).abs().max() < 1e-5
    timm = load_file(tmp_path / "timm/model.safetensors")
    patches = original.state_dict()["embeddings.patch_embeddings.projection.weight"]
    assert numpy.array_equal(timm["patch_embed.proj.weight"], patches)

    ref = finished[0].result.backbone
    compared = stack.client.compare_backbones("imported-vit:1", f"{ref.name}:{ref.version}")
    spec = {each.path: (each.first, each.second) for each in compared.spec}
    assert spec["method.name"] == ("imported", "rc_mae")
    assert spec["model.embed_dim"] == (24, 32)
    assert compared.curves
    shown = stack.rcmae("backbones", "show", "imported-vit:1").stdout
    assert "facebook/vit-mae-tiny https://huggingface.co/facebook/vit-mae-tiny" in " ".join(shown.split())

    stack.client.delete(job["id"], with_backbones=True)
    with pytest.raises(ApiError, match="imported-vit"):
        stack.client.version("imported-vit")
    poll(lambda: list(stack.client.jobs(kind="import")), lambda left: not left)


def test_a_folder_that_is_not_there_fails_at_once_and_says_where_to_copy_it(stack, tmp_path):
    job = stack.client.import_backbone(
        str(tmp_path / "my-laptop/vit"), "nowhere", license="unknown", origin={"name": "somebody's"}
    )
    ended = stack.client.wait(job.id, timeout_s=300)
    assert (ended.state, ended.reason, ended.attempts) == (State.FAILED, "spec_error", 1)
    assert "does not exist where the job runs" in ended.message
    assert "copy them to S3, or to a folder that every worker has" in ended.message


@pytest.mark.slow
def test_an_import_whose_worker_is_killed_is_done_again_and_leaves_one_version(stack, tmp_path):
    source = tmp_path / "vit"
    stored(vit_mae(), source)
    job = stack.client.import_backbone(
        f"file://{source}", "killed-vit", license="other", license_link="https://a.example/licence",
        origin={"name": "somebody's"}, formats=["timm", "onnx"],
    )  # fmt: skip
    wait(stack, job.id, lambda found: found.state is State.RUNNING)
    for process in poll(lambda: members(stack, "RayTrainWorker"), bool):
        process.kill()
    ended = wait(stack, job.id, lambda found: found.state.terminal)
    assert (ended.state, ended.attempts) == (State.SUCCEEDED, 2), ended.message
    assert stack.client.backbone("killed-vit").versions == [1]
    version = stack.client.version("killed-vit")
    assert (version.formats, version.license, version.origin_url) == (["timm", "onnx"], "other", None)

"""Every other format of a backbone: keys, shapes and configurations, and the trainer's own features."""

import json
import sys
import zipfile
from pathlib import Path

import onnxruntime
import pytest
import torch
from backbones import model_of, shaken, spec_of, statistics
from safetensors.torch import load_file
from transformers import ViTMAEForPreTraining

from trainer.errors import SpecRefused
from trainer.export import graph, verify
from trainer.export.graph import encoder_of, export_onnx, export_program
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.timm import export_timm
from trainer.models.rc_mae import make_teacher
from trainer.protocol.tensor_names import encoder_names, hf_mae_names, hf_names, is_decoder
from trainer.spec.pretrain import MethodSpec
from trainer.training.optim import make_optimizer
from trainer.training.snapshot import write
from trainer.training.state import RunConstants, TrainState

SHAPES = [{}, {"in_chans": 1}, {"in_chans": 5}, {"img_size": [16, 48], "patch_size": 4}]
SQUARE = [{}, {"in_chans": 1}, {"in_chans": 5}]


def images_for(model, count: int) -> torch.Tensor:
    return torch.randn(count, model.in_chans, model.height, model.width, generator=torch.Generator().manual_seed(count))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 12])
def test_the_encoder_s_names_are_those_of_the_network(depth):
    weights = shaken(model_of(depth=depth)).state_dict()
    assert sorted(encoder_names(depth)) == sorted(name for name in weights if not is_decoder(name))


def test_no_two_tensors_share_a_name():
    weights = shaken(model_of(depth=3, decoder_depth=2)).state_dict()
    for names in (hf_mae_names, hf_names):
        found = [key for name in weights if names is hf_mae_names or not is_decoder(name) for key in names(name)]
        assert len(found) == len(set(found))


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_timm_s_folder(tmp_path, shape):
    model = model_of(preset="vit_small_patch16_224", **shape)
    network = shaken(model)
    mean, std = statistics(model.in_chans)
    export_timm(network.state_dict(), model, mean, std, tmp_path / "timm", "mit", {"job_id": "job-a"})
    assert sorted(file.name for file in (tmp_path / "timm").iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(tmp_path / "timm/model.safetensors")
    assert set(tensors) == set(encoder_names(2)), "timm's strict load takes no decoder"
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in tensors.items())
    config = json.loads((tmp_path / "timm/config.json").read_text())
    assert config["architecture"] == "vit_small_patch16_224"
    assert (config["num_classes"], config["global_pool"], config["num_features"]) == (0, "avg", 24)
    assert config["rcmae"] == {"job_id": "job-a", "value_range": [0.0, 255.0]}
    size, pixels = [model.height, model.width], config["pretrained_cfg"]
    assert config["model_args"] == {
        "img_size": size, "patch_size": model.patch_size, "in_chans": model.in_chans, "embed_dim": 24, "depth": 2,
        "num_heads": 3, "mlp_ratio": 4, "class_token": True, "global_pool": "avg",
        "fc_norm": False,
    }  # fmt: skip
    assert pixels["crop_mode"] == ("center" if model.height == model.width else "squash")
    assert pixels["input_size"] == [model.in_chans, *size]
    assert (pixels["mean"], pixels["std"], pixels["license"]) == (list(mean), list(std), "mit")
    # Of five channels some versions of timm would not take the first layer, and draw it at random.
    assert pixels["first_conv"] == (None if model.in_chans == 5 else "patch_embed.proj")


KNOWN_TO_TIMM = {
    "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load",
    "input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct", "test_crop_pct",
    "crop_mode", "mean", "std", "num_classes", "label_offset", "label_names", "label_descriptions", "pool_size",
    "test_pool_size", "first_conv", "classifier", "license", "description", "origin_url", "paper_name", "paper_ids",
    "notes",
}  # fmt: skip


def test_timm_s_own_part_of_the_configuration_has_no_key_that_timm_refuses(tmp_path):
    model = model_of()
    export_timm(shaken(model).state_dict(), model, *statistics(3), tmp_path / "timm")
    assert set(json.loads((tmp_path / "timm/config.json").read_text())["pretrained_cfg"]) <= KNOWN_TO_TIMM


# --- transformers with the decoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SQUARE)
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_transformers_loads_the_whole_auto_encoder_and_loses_as_much(tmp_path, shape, norm_pix_loss):
    """The reader's own loss on a mask that both are told: encoder, decoder, order of pixels, and targets."""
    model, method = model_of(**shape), MethodSpec(mask_ratio=0.5, norm_pix_loss=norm_pix_loss)
    network = shaken(model)
    export_vit_mae(network.state_dict(), model, method, *statistics(model.in_chans), tmp_path / "hf-mae")
    theirs, loading = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf-mae", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, noise = images_for(model, 3), torch.rand(3, model.patches)
    order, visible = noise.argsort(dim=1), int(model.patches * 0.5)
    patches = verify.patchify(images, model.patch_size)

    def picked(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))

    with torch.no_grad():
        ours, answer = network(picked(patches, order[:, :visible]), order), theirs.eval()(images, noise=noise)
    assert (ours - picked(answer.logits, order[:, visible:])).abs().max() < 1e-5
    target = picked(patches, order[:, visible:])
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert answer.loss.item() == pytest.approx((ours - target).square().mean().item(), rel=1e-4)


def test_the_file_with_the_decoder_holds_every_tensor_bit_for_bit(tmp_path):
    model = model_of(decoder_depth=2)
    network = shaken(model)
    export_vit_mae(network.state_dict(), model, MethodSpec(), *statistics(3), tmp_path / "hf-mae")
    tensors, weights = load_file(tmp_path / "hf-mae/model.safetensors"), network.state_dict()
    for name, value in weights.items():
        assert torch.equal(torch.cat([tensors.pop(key) for key in hf_mae_names(name)]), value), name
    assert not tensors
    config = json.loads((tmp_path / "hf-mae/config.json").read_text())
    assert (config["model_type"], config["mask_ratio"], config["norm_pix_loss"]) == ("vit_mae", 0.75, True)
    assert (config["decoder_hidden_size"], config["decoder_num_hidden_layers"]) == (16, 2)
    assert (config["decoder_num_attention_heads"], config["decoder_intermediate_size"]) == (2, 64)
    assert config["layer_norm_eps"] == 1e-6


# --- graphs ----------------------------------------------------------------------------------------------------------

LONG = {"img_size": [136, 144], "patch_size": 8, "depth": 1}
"""More tokens than the trainer multiplies out by itself on a CPU."""


@pytest.mark.parametrize("shape", [*SHAPES, LONG])
def test_a_graph_takes_any_number_of_images_and_its_signature_says_what_goes_in_and_out(tmp_path, shape):
    model = model_of(**shape)
    network = shaken(model)
    mean, std = statistics(model.in_chans)
    export_program(network.state_dict(), model, mean, std, tmp_path / "torch_export")
    program = torch.export.load(tmp_path / "torch_export/model.pt2").module()
    for count in (1, 2, 7):
        images = images_for(model, count)
        with torch.no_grad():
            ours, theirs = network.encode(images), program(images)
        assert theirs.shape == (count, 1 + model.patches, 24)
        assert (ours - theirs).abs().max() < 1e-5
        assert ours.std() > 0.1
    told = json.loads((tmp_path / "torch_export/signature.json").read_text())
    ((given,), (made,)) = told["inputs"], told["outputs"]
    assert given == {
        "name": "pixel_values", "dtype": "float32", "shape": ["batch", model.in_chans, model.height, model.width],
    }  # fmt: skip
    assert made == {"name": "last_hidden_state", "dtype": "float32", "shape": ["batch", 1 + model.patches, 24]}
    assert (told["preprocessing"]["image_mean"], told["preprocessing"]["image_std"]) == (list(mean), list(std))


def test_a_graph_s_file_holds_no_pickle(tmp_path):
    model = model_of()
    export_program(shaken(model).state_dict(), model, *statistics(3), tmp_path / "torch_export")
    with zipfile.ZipFile(tmp_path / "torch_export/model.pt2") as archive:
        starts = {name: archive.read(name)[:2] for name in archive.namelist()}
    assert len(starts) > 10
    assert not [name for name, start in starts.items() if start in {b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"}]


def test_the_files_of_graphs_do_not_say_where_the_worker_s_code_lies(tmp_path):
    model = model_of()
    weights = shaken(model).state_dict()
    export_program(weights, model, *statistics(3), tmp_path / "torch_export")
    export_onnx(weights, model, *statistics(3), tmp_path / "onnx")
    with zipfile.ZipFile(tmp_path / "torch_export/model.pt2") as archive:
        files = [archive.read(name) for name in archive.namelist()]
    for data in [*files, (tmp_path / "onnx/model.onnx").read_bytes()]:
        assert str(Path(graph.__file__).parent).encode() not in data
        assert b"site-packages" not in data


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], LONG])
def test_onnx_runtime_takes_any_number_of_images(tmp_path, shape):
    model = model_of(**shape)
    network = shaken(model)
    export_onnx(network.state_dict(), model, *statistics(model.in_chans), tmp_path / "onnx")
    assert sorted(file.name for file in (tmp_path / "onnx").iterdir()) == ["model.onnx", "signature.json"]
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    ((given,), (made,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("pixel_values", ["batch", model.in_chans, model.height, model.width])
    assert (made.name, made.shape[1:]) == ("last_hidden_state", [1 + model.patches, 24])
    for count in (1, 2, 7):
        images = images_for(model, count)
        (theirs,) = session.run(None, {"pixel_values": images.numpy()})
        with torch.no_grad():
            ours = network.encode(images)
        assert (ours - torch.from_numpy(theirs)).abs().max() < 1e-5


def test_onnx_without_its_packages_is_refused_with_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    model = model_of()
    with pytest.raises(SpecRefused, match=r"export\.formats: onnx needs onnxscript, which this worker does not have"):
        export_onnx(shaken(model).state_dict(), model, *statistics(3), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_graph_s_encoder_is_no_other_than_the_trainer_s():
    model = model_of()
    weights = shaken(model).state_dict()
    assert set(encoder_of(weights, model).state_dict()) == set(encoder_names(2))
    with pytest.raises(RuntimeError, match="Missing key"):
        encoder_of({name: value for name, value in weights.items() if name != "norm.bias"}, model)


# --- the comparing tool ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    """A checkpoint whose teacher is unlike its student, and both in every format that the tool compares."""
    folder, spec = tmp_path_factory.mktemp("pulled"), spec_of()
    student, teacher = shaken(spec, 0), make_teacher(shaken(spec, 1))
    (folder / "checkpoint").mkdir()
    pixels = statistics(3)
    constants = RunConstants(spec, dataset_fingerprint="", mean=pixels[0], std=pixels[1], workers=1, micro_batch_size=1)
    state = TrainState(student, teacher, make_optimizer(student, spec.optimization), step=1)
    write(folder / "checkpoint", state.snapshot(constants, into={}), attempt=1)
    for name, network in (("teacher", teacher), ("student", student)):
        weights = network.state_dict()
        export_vit(weights, spec.model, *pixels, folder / name / "hf")
        export_vit_mae(weights, spec.model, spec.method, *pixels, folder / name / "hf-mae")
        export_program(weights, spec.model, *pixels, folder / name / "torch_export")
    return folder


@pytest.mark.parametrize("form", ["hf", "hf-mae", "torch_export"])
def test_the_tool_compares_each_format_and_network(pulled, monkeypatch, form):
    def status(network: str, *further: str) -> int:
        arguments = ["--checkpoint", str(pulled / "checkpoint"), "--backbone", str(pulled / network / form), *further]
        monkeypatch.setattr(sys, "argv", ["verify", *arguments])
        return verify.main()

    assert status("teacher") == 0
    assert status("student") == 1
    assert status("student", "--network", "student") == 0


def test_the_tool_compares_onnx(pulled, tmp_path):
    spec = spec_of()
    export_onnx(make_teacher(shaken(spec, 1)).state_dict(), spec.model, *statistics(3), tmp_path / "onnx")
    assert verify.compare(pulled / "checkpoint", tmp_path / "onnx")["max_abs_difference"] < 1e-5
    assert verify.compare(pulled / "checkpoint", tmp_path / "onnx", "student")["max_abs_difference"] > 0.1


def test_a_difference_that_is_no_number_is_not_hidden():
    assert not verify._largest([0.0, float("nan")]) < 1e-5
    assert not verify._largest([float("nan"), 0.0]) < 1e-5

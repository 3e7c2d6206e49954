"""Backbones under other libraries' names: every tensor bit for bit, and nothing half written."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from backbones import model_of, shaken, statistics
from safetensors.torch import load_file, save_file

from service.cli import main
from service.client import convert as module
from service.client.convert import LIBRARIES, ConvertError, convert
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.timm import export_timm
from trainer.protocol.tensor_names import encoder_names
from trainer.spec.pretrain import MethodSpec, ModelSpec

FORMATS = ["timm", "hf", "hf-mae"]
ORDERS = {1: "L", 3: "RGB", 5: None}
"""detectron2's names of the order of channels."""


def pulled(folder: Path, model: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """A network in every format that can be converted; gives its encoder by its own names."""
    weights, pixels = shaken(model, seed).state_dict(), statistics(model.in_chans)
    export_timm(weights, model, *pixels, folder / "timm")
    export_vit(weights, model, *pixels, folder / "hf")
    export_vit_mae(weights, model, MethodSpec(), *pixels, folder / "hf-mae")
    return {name: weights[name] for name in encoder_names(model.depth)}


@pytest.fixture
def encoder(tmp_path) -> dict[str, torch.Tensor]:
    return pulled(tmp_path, model_of(depth=3))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [{}, {"in_chans": 1}, {"in_chans": 5}])
def test_detectron2_gets_mae_s_names(tmp_path, form, shape):
    model = model_of(**shape)
    encoder = pulled(tmp_path, model)
    convert(tmp_path / form, tmp_path / "out", "detectron2")
    found = load_file(tmp_path / "out/model.safetensors")
    assert set(found) == set(encoder)
    assert all(torch.equal(found[name], value) for name, value in encoder.items())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["backbone"] == {
        "in_chans": model.in_chans, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 4.0,
        "qkv_bias": True, "pretrain_img_size": 32, "pretrain_use_cls_token": True,
    }  # fmt: skip
    assert config["norm_eps"] == 1e-6
    assert config.get("input_format") == ORDERS[model.in_chans], "detectron2's own default is BGR"
    mean, std = statistics(model.in_chans)
    assert config["pixel_mean"] == pytest.approx([255 * value for value in mean])
    assert config["pixel_std"] == pytest.approx([255 * value for value in std])


MMPRETRAIN = {
    "cls_token": "backbone.cls_token",
    "pos_embed": "backbone.pos_embed",
    "patch_embed.proj.weight": "backbone.patch_embed.projection.weight",
    "blocks.1.norm1.bias": "backbone.layers.1.ln1.bias",
    "blocks.0.norm2.weight": "backbone.layers.0.ln2.weight",
    "blocks.1.attn.qkv.weight": "backbone.layers.1.attn.qkv.weight",
    "blocks.1.attn.qkv.bias": "backbone.layers.1.attn.qkv.bias",
    "blocks.0.attn.proj.weight": "backbone.layers.0.attn.proj.weight",
    "blocks.0.mlp.fc1.weight": "backbone.layers.0.ffn.layers.0.0.weight",
    "blocks.1.mlp.fc2.bias": "backbone.layers.1.ffn.layers.1.bias",
    "norm.weight": "backbone.ln1.weight",
}
"""One of each kind."""


@pytest.mark.parametrize("form", FORMATS[:2])
@pytest.mark.parametrize("shape", [{}, {"img_size": [16, 48], "in_chans": 1}])
def test_mmpretrain_gets_its_names(tmp_path, form, shape):
    model = model_of(**shape)
    encoder = pulled(tmp_path, model)
    convert(tmp_path / form, tmp_path / "out", "mmpretrain")
    found = load_file(tmp_path / "out/model.safetensors")
    assert len(found) == len(encoder)
    for ours, theirs in MMPRETRAIN.items():
        assert torch.equal(found[theirs], encoder[ours]), ours
    assert found["backbone.layers.1.attn.qkv.weight"].shape == (72, 24)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["backbone"] == {
        "type": "VisionTransformer", "img_size": [model.height, model.width], "patch_size": 8,
        "in_channels": model.in_chans, "norm_cfg": {"type": "LN", "eps": 1e-6},
        "arch": {"embed_dims": 24, "num_layers": 2, "num_heads": 3, "feedforward_channels": 96},
    }  # fmt: skip
    assert config["data_preprocessor"]["to_rgb"] is (model.in_chans == 3), "mmcv reads pictures as BGR"
    assert config["data_preprocessor"]["mean"] == pytest.approx([255 * v for v in statistics(model.in_chans)[0]])


@pytest.mark.parametrize(("reader", "key"), [("detectron2", "model"), ("mmpretrain", "state_dict")])
def test_the_library_s_loader_gets_tensors_alone(tmp_path, encoder, reader, key):
    """What detectron2's `DetectionCheckpointer` and mmengine's `load_checkpoint` read, by torch's safe loading."""
    convert(tmp_path / "hf", tmp_path / "out", reader)
    found = torch.load(tmp_path / "out/model.pth", weights_only=True)
    assert list(found) == [key]
    same = load_file(tmp_path / "out/model.safetensors")
    assert set(found[key]) == set(same)
    assert len(same) == len(encoder)
    for name, value in found[key].items():
        assert value.dtype == same[name].dtype
        assert torch.equal(value, same[name]), name


@pytest.mark.parametrize(
    ("reader", "shape", "told"),
    [
        ("detectron2", {}, ['mapper.image_format = "RGB"', "model.pth?matching_heuristics=True", "has 2 blocks"]),
        ("detectron2", {"in_chans": 1}, ['mapper.image_format = "L"', "of one grey channel (`L`), minus `pixel_mean`"]),
        ("mmpretrain", {}, ["load_checkpoint(", "`to_rgb` reverses it", 'Path("out")']),
        ("mmpretrain", {"in_chans": 1}, ['color_type="grayscale"']),
    ],
)
def test_the_folder_says_how_to_load_it(tmp_path, reader, shape, told):
    pulled(tmp_path, model_of(**shape))
    convert(tmp_path / "hf", tmp_path / "out", reader)
    text = (tmp_path / "out/README.md").read_text()
    for each in told:
        assert each in text, each
    for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        compile(code, "README.md", "exec")


def test_the_command_says_what_to_read_next(tmp_path, encoder, capsys):
    new = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["backbones", "convert", str(tmp_path / "hf"), "--to", "mmpretrain", "--out", str(new)])
    assert not ended.value.code
    assert f"{new}/README.md shows how to load it" in capsys.readouterr().out
    assert encoder


@pytest.mark.parametrize("form", FORMATS[:2])
def test_pixels_of_more_than_eight_bits_are_normalised_as_they_are_stored(tmp_path, form):
    model = model_of(in_chans=1)
    weights, (mean, std) = shaken(model).state_dict(), statistics(1)
    export = {"timm": export_timm, "hf": export_vit}[form]
    export(weights, model, mean, std, tmp_path / form, value_range=(100.0, 4100.0))
    convert(tmp_path / form, tmp_path / "out", "detectron2")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pixel_mean"] == pytest.approx([4000 * mean[0] + 100])
    assert config["pixel_std"] == pytest.approx([4000 * std[0]])


def test_a_folder_of_an_earlier_release_for_timm_is_of_eight_bits(tmp_path, encoder):
    config = json.loads((tmp_path / "timm/config.json").read_text())
    del config["rcmae"]["value_range"]
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    convert(tmp_path / "timm", tmp_path / "out", "detectron2")
    mean = json.loads((tmp_path / "out/config.json").read_text())["pixel_mean"]
    assert mean == pytest.approx([255 * value for value in statistics(3)[0]])
    assert encoder


def test_without_torch_nothing_is_written_and_it_says_what_to_install(tmp_path, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install torch" in refusal(tmp_path / "hf", tmp_path / "out")
    assert encoder


@pytest.mark.parametrize("reader", LIBRARIES)
def test_all_formats_give_the_same_bytes(tmp_path, encoder, reader):
    for form in FORMATS:
        convert(tmp_path / form, tmp_path / f"out-{form}", reader)
    files = {(tmp_path / f"out-{form}/model.safetensors").read_bytes() for form in FORMATS}
    assert len(files) == 1
    assert len({(tmp_path / f"out-{form}/config.json").read_bytes() for form in FORMATS}) == 1
    assert encoder


def test_tensors_longer_than_a_piece_are_whole(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 7)
    convert(tmp_path / "hf", tmp_path / "out", "detectron2")
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in encoder.items())


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(source: Path, out: Path, to: str = "detectron2") -> str:
    """What it says; and nothing is left."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ConvertError) as caught:
        convert(source, out, to)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


def test_an_unknown_library_is_refused(tmp_path, encoder):
    assert refusal(tmp_path / "hf", tmp_path / "out", "mmseg").endswith("choose from detectron2, mmpretrain")
    assert encoder


def test_images_that_are_not_square_are_refused_for_detectron2_with_the_reason(tmp_path):
    pulled(tmp_path, model_of(img_size=[16, 64]))  # as many patches as a square one has
    told = refusal(tmp_path / "hf", tmp_path / "out")
    assert "16 x 64" in told
    assert "square" in told


def test_a_folder_that_is_there_is_never_written_over(tmp_path, encoder):
    (tmp_path / "out").mkdir()
    assert "exists: name a new folder" in refusal(tmp_path / "hf", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert encoder


def test_what_is_no_backbone_is_refused(tmp_path, encoder):
    assert "name the folder of a pulled backbone" in refusal(tmp_path, tmp_path / "out")
    (tmp_path / "hf/config.json").write_text('{"model_type": "bert"}')
    assert "no ViT in the format" in refusal(tmp_path / "hf", tmp_path / "out")
    (tmp_path / "hf/config.json").write_text('{"model_type": "vit"}')
    assert "not that of a pulled backbone" in refusal(tmp_path / "hf", tmp_path / "out")
    (tmp_path / "hf/config.json").write_text("{")
    assert "is not JSON" in refusal(tmp_path / "hf", tmp_path / "out")
    assert encoder


@pytest.mark.parametrize("form", FORMATS)
def test_a_tensor_too_many_or_too_few_is_told(tmp_path, encoder, form):
    file = tmp_path / form / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.endswith(("1.norm2.bias", "1.layernorm_after.bias")))
    save_file({name: value for name, value in tensors.items() if name != gone}, file)
    assert f"lacks the tensor {gone}" in refusal(tmp_path / form, tmp_path / "out")
    save_file(tensors | {"head.weight": torch.zeros(2)}, file)
    assert "lacks: head.weight" in refusal(tmp_path / form, tmp_path / "out")
    assert encoder


@pytest.mark.parametrize("left", [0, 7, 100, 5000])
def test_a_file_that_was_cut_is_told(tmp_path, encoder, left):
    file = tmp_path / "timm/model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    assert "pull the backbone again" in refusal(tmp_path / "timm", tmp_path / "out")
    assert encoder

"""An exported backbone in transformers, and the tool that compares the two."""

import hashlib
import json
import shutil
import sys

import pytest
import torch
from backbones import MEAN, STD, shaken, spec_of, statistics, stored_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTModel

from trainer.evaluation.features import normalised
from trainer.export import verify
from trainer.export.huggingface import export_vit
from trainer.export.timm import export_timm
from trainer.export.version import write_sums
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher, update_teacher
from trainer.spec.pretrain import PretrainSpec
from trainer.training.state import TEACHER


def exported(model: MaskedAutoencoder, spec: PretrainSpec, folder):
    export_vit(model.state_dict(), spec.model, *statistics(spec.model.in_chans), folder)
    return folder


SHAPES = [{}, {"in_chans": 1}, {"img_size": [16, 48], "patch_size": 4}, {"in_chans": 4, "img_size": [40, 24]}]


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_it_without_a_key_amiss_and_gives_the_same_features(tmp_path, shape):
    spec = spec_of(**shape)
    model = shaken(spec)
    folder = exported(model, spec, tmp_path / "hf")
    theirs, loading = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(3, spec.model.in_chans, spec.model.height, spec.model.width)
    with torch.no_grad():
        ours, other = model.encode(images), theirs.eval()(images).last_hidden_state
    assert ours.shape == other.shape == (3, 1 + spec.model.patches, 24)
    assert (ours - other).abs().max() < 1e-5
    assert ours.std() > 0.1


def test_the_file_holds_the_given_teacher_s_encoder_bit_for_bit_and_no_decoder(tmp_path):
    spec = spec_of()
    student, other = shaken(spec, 0), shaken(spec, 1)
    teacher = make_teacher(student)
    update_teacher(teacher, other, 0.9)
    tensors = load_file(exported(teacher, spec, tmp_path / "hf") / "model.safetensors")
    weights = teacher.state_dict()
    encoder = {name for name in weights if not name.startswith("decoder") and name != "mask_token"}
    assert sum(t.numel() for t in tensors.values()) == sum(weights[name].numel() for name in encoder)
    assert not [name for name in tensors if "decoder" in name or "mask" in name]
    for block in range(2):
        place = f"encoder.layer.{block}.attention.attention"
        for leaf in ("weight", "bias"):
            joint = torch.cat([tensors[f"{place}.{part}.{leaf}"] for part in ("query", "key", "value")])
            assert torch.equal(joint, weights[f"blocks.{block}.attn.qkv.{leaf}"])
            assert not torch.equal(joint, student.state_dict()[f"blocks.{block}.attn.qkv.{leaf}"])
    assert torch.equal(tensors["embeddings.cls_token"], weights["cls_token"])
    assert torch.equal(tensors["embeddings.position_embeddings"], weights["pos_embed"])
    held = {value.numpy().tobytes() for value in tensors.values()}
    whole = {name for name in encoder if "qkv" not in name}
    assert all(weights[name].numpy().tobytes() in held for name in whole)
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_a_folder_is_never_written_over(tmp_path):
    spec = spec_of()
    folder = exported(shaken(spec), spec, tmp_path / "deep" / "hf")
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    with pytest.raises(FileExistsError):
        exported(shaken(spec), spec, folder)


def test_the_config_describes_the_model(tmp_path):
    spec = spec_of(img_size=[40, 24], in_chans=1)
    config = json.loads((exported(shaken(spec), spec, tmp_path / "hf") / "config.json").read_text())
    assert (config["image_size"], config["patch_size"], config["num_channels"]) == ([40, 24], 8, 1)
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (24, 2, 3)
    assert config["layer_norm_eps"] == 1e-6


def test_the_preprocessor_normalises_as_training_did(tmp_path):
    spec = spec_of(img_size=[40, 24])
    processor = AutoImageProcessor.from_pretrained(exported(shaken(spec), spec, tmp_path / "hf"))
    images = torch.randint(0, 256, (2, 3, 40, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, 40, 24)
    assert (pixels - normalised(images, MEAN, STD)).abs().max() < 1e-5
    assert processor(torch.zeros(3, 100, 70, dtype=torch.uint8), return_tensors="pt")["pixel_values"].shape[2:] == (
        40, 24,
    )  # fmt: skip


# --- the comparing tool --------------------------------------------------------------------------------------------


@pytest.fixture
def pulled(tmp_path):
    """A checkpoint with a teacher unlike its student, and the teacher's export."""
    spec, student, teacher = stored_checkpoint(tmp_path / "checkpoint")
    exported(teacher, spec, tmp_path / "hf")
    exported(student, spec, tmp_path / "student-hf")
    return tmp_path


def exit_status(monkeypatch, folder, backbone: str, *further: str) -> int:
    arguments = ["--checkpoint", str(folder / "checkpoint"), "--backbone", str(folder / backbone), *further]
    monkeypatch.setattr(sys, "argv", ["verify", *arguments])
    return verify.main()


def test_a_faithful_export_passes(pulled, monkeypatch, capsys):
    assert exit_status(monkeypatch, pulled, "hf") == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("max_abs_difference") < 1e-5
    assert told == {"keys_missing": [], "keys_unexpected": [], "keys_mismatched": []}


def test_the_student_s_export_does_not_pass_for_the_teacher_s(pulled, monkeypatch):
    assert exit_status(monkeypatch, pulled, "student-hf") == 1
    assert exit_status(monkeypatch, pulled, "student-hf", "--network", "student") == 0
    assert exit_status(monkeypatch, pulled, "hf", "--network", "student") == 1


def test_a_network_that_a_checkpoint_has_not_is_told(pulled, monkeypatch, capsys):
    (pulled / "checkpoint" / TEACHER).unlink()  # as `mae` leaves it
    with pytest.raises(SystemExit):
        exit_status(monkeypatch, pulled, "hf")
    assert "has no teacher" in capsys.readouterr().err


def test_a_folder_that_nothing_here_reads_is_told(pulled, monkeypatch, capsys):
    spec = spec_of()
    export_timm(shaken(spec).state_dict(), spec.model, MEAN, STD, pulled / "timm")
    (pulled / "empty").mkdir()
    for folder, told in (("timm", "needs torchvision"), ("empty", "give a pulled folder")):
        with pytest.raises(SystemExit):
            exit_status(monkeypatch, pulled, folder)
        assert told in capsys.readouterr().err


def doctored(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def nudge(tensors) -> None:
    tensors["encoder.layer.1.output.dense.bias"][0] += 1e-2


def not_a_number(tensors) -> None:
    tensors["layernorm.bias"][0] = float("nan")


def surplus(tensors) -> None:
    tensors["encoder.layer.7.output.dense.bias"] = torch.zeros(24)


def lack(tensors) -> None:
    del tensors["layernorm.weight"]  # transformers starts it at one and goes on


@pytest.mark.parametrize(
    ("change", "told"),
    [(nudge, None), (not_a_number, None), (surplus, "keys_unexpected"), (lack, "keys_missing")],
)
def test_a_doctored_export_fails(pulled, monkeypatch, capsys, change, told):
    doctored(pulled / "hf", change)
    assert exit_status(monkeypatch, pulled, "hf") == 1
    result = json.loads(capsys.readouterr().out)
    assert [key for key in result if key.startswith("keys_") and result[key]] == ([told] if told else [])


def test_compare_tells_the_difference(pulled):
    first = verify.compare(pulled / "checkpoint", pulled / "hf")
    second = verify.compare(pulled / "checkpoint", pulled / "student-hf")
    assert first["max_abs_difference"] < 1e-5
    assert second["max_abs_difference"] > 0.1


def test_the_sums_are_those_of_every_file(pulled):
    shutil.copytree(pulled / "hf", pulled / "backbone/hf")
    (pulled / "backbone/spec.json").write_text("{}")
    write_sums(pulled / "backbone")
    listed = dict(reversed(line.split("  ", 1)) for line in (pulled / "backbone/SHA256SUMS").read_text().splitlines())
    assert set(listed) == {"hf/config.json", "hf/model.safetensors", "hf/preprocessor_config.json", "spec.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((pulled / "backbone" / name).read_bytes()).hexdigest() == digest

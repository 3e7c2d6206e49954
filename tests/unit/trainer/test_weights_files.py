"""Single files of weights by the names of MAE's and RC-MAE's releases, and folders by timm's."""

import argparse
import hashlib
import json
import os
import re
from pathlib import PurePosixPath

import pytest
import torch
from foreign import images, tokens, vit_mae
from safetensors.torch import save_file

from trainer.errors import WeightsRefused
from trainer.models.pixels import patchify
from trainer.storage import Store
from trainer.weights import source
from trainer.weights.agreement import TOLERANCE, as_network, check_forward
from trainer.weights.foreign import read_weights

TINY = {
    "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768,
    "decoder_hidden_size": 128, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 512,
}  # fmt: skip
"""The widths of the paper's smallest network, for which the heads are known."""


RELEASE = {
    "vit.embeddings.": "", "vit.layers.": "blocks.", "vit.layernorm.": "norm.", "position_embeddings": "pos_embed",
    "patch_embeddings.projection": "patch_embed.proj", "decoder.decoder_layers.": "decoder_blocks.", "decoder.": "",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj",
}  # fmt: skip


def release_names(network):
    """The tensors of transformers' ViTMAE by the names of MAE's release."""
    state = {}
    for name, value in network.state_dict().items():
        for theirs, release in RELEASE.items():
            name = name.replace(theirs, release)  # noqa: PLW2901 - several parts of one name
        state[name] = value.clone()
    for name in [name for name in state if "q_proj" in name]:
        parts = [state.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        state[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return state


@pytest.fixture(scope="module")
def network():
    return vit_mae(**TINY)


@pytest.fixture
def state(network):
    return release_names(network)


def written(folder, content, name="weights.pth", **options):
    torch.save(content, folder / name, **options)
    return Store(str(folder)), name


def encoder_only(state):
    return {name: value for name, value in state.items() if not name.startswith(("decoder", "mask_token"))}


def features_of(network):
    with torch.no_grad():
        before, network.config.mask_ratio = network.config.mask_ratio, 0.0
        found = network.vit(images(), noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
        network.config.mask_ratio = before
    return found


# --- MAE -------------------------------------------------------------------------------------------------------------


def test_a_pretraining_checkpoint_gives_the_network_s_features_and_predictions(network, state, tmp_path):
    store, name = written(tmp_path, {"model": state, "optimizer": {"state": {}}, "epoch": 3})
    weights = read_weights(store, name)
    model = weights.model
    assert weights.source_format == "mae_pth"
    assert (model.embed_dim, model.depth, model.num_heads, model.img_size, model.patch_size) == (192, 2, 3, 32, 8)
    assert (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads) == (128, 1, 4)
    assert check_forward(weights) < TOLERANCE / 10
    assert (tokens(weights, images()) - features_of(network)).abs().max() < 1e-5
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    order = noise.argsort(dim=1)
    index = order[:, :, None].expand(-1, -1, model.patch_values)
    with torch.no_grad():
        ours = as_network(model, weights.state)(patchify(images(), 8).gather(1, index[:, :4]), order)
        theirs = network(images(), noise=noise).logits.gather(1, index[:, 4:])
    assert (ours - theirs).abs().max() < 1e-5
    assert "Beside the weights the file holds epoch, optimizer, which was left out." in weights.notes
    for part, heads, width in (("encoder", 3, 192), ("decoder", 4, 128)):
        assert (
            f"The source does not say how many attention heads its {part} has: {heads} were assumed, as the paper's "
            f"networks of width {width} have. The check of the forward pass cannot find another number."
        ) in weights.notes
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert weights.sha256 == {name: digest}


def test_the_arguments_that_mae_s_code_saves_beside_the_weights_are_no_obstacle(state, tmp_path):
    content = {"model": state, "epoch": 3, "args": argparse.Namespace(model="mae_vit_base_patch16", lr=None)}
    weights = read_weights(*written(tmp_path, content))
    assert all(torch.equal(value, state[name]) for name, value in weights.state.items())
    assert "Beside the weights the file holds args, epoch, which was left out." in weights.notes


def test_no_code_of_a_file_runs_not_even_within_arguments(state, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for content in (Runs(), argparse.Namespace(lr=Runs())):
        with pytest.raises(WeightsRefused, match=r"holds objects of posix\.mkdir beside the tensors"):
            read_weights(*written(tmp_path, {"model": state, "args": content}))
    assert not (tmp_path / "ran").exists()


def test_activation_and_epsilon_of_a_single_file_are_assumed_which_a_note_says(state, tmp_path):
    assert (
        "The file does not say its activation and epsilon: GELU and 1e-6, as in MAE's code, were assumed; the check "
        "cannot find others."
    ) in read_weights(*written(tmp_path, state)).notes


def test_a_file_beside_its_configuration_is_refused_since_the_folder_says_more(state, tmp_path):
    timm_folder(tmp_path, state, model_args={"act_layer": "quick_gelu"})
    with pytest.raises(WeightsRefused, match="model_args has act_layer 'quick_gelu'"):
        read_weights(Store(str(tmp_path)))
    for store, name in (
        (Store(str(tmp_path)), "model.safetensors"),
        (Store(str(tmp_path.parent)), f"{tmp_path.name}/model.safetensors"),
    ):
        with pytest.raises(WeightsRefused, match=r"lies in a folder with a config\.json, .*: name the folder"):
            read_weights(store, name)


def _with(**tensors):
    return lambda state: encoder_only(state) | tensors


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (encoder_only, None),
        (_with(mask_token=torch.zeros(1, 1, 128)), "The mask token was left out: without a decoder nothing uses it."),
        (
            _with(**{"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}),
            "The classifier was left out: a backbone has no classes.",
        ),
        (
            _with(**{"fc_norm.weight": torch.zeros(192), "fc_norm.bias": torch.zeros(192)}),
            "The norm before the classifier was left out: the backbone's own final norm is kept.",
        ),
        (
            _with(**{"pre_logits.fc.weight": torch.zeros(192, 192), "pre_logits.fc.bias": torch.zeros(192)}),
            "The layer before the classifier was left out: it belongs to the classes.",
        ),
    ],
)
def test_an_encoder_is_read_and_what_is_beside_it_is_told(network, state, tmp_path, change, note):
    weights = read_weights(*written(tmp_path, {"model": change(state)}))
    assert not weights.has_decoder
    assert (tokens(weights, images()) - features_of(network)).abs().max() < 1e-5
    assert [told for told in weights.notes if "left out" in told] == ([note] if note else [])


@pytest.mark.parametrize("form", ["plain", "state_dict", "ddp", "twice", "legacy", "safetensors"])
def test_every_form_of_file_gives_the_same_tensors(state, tmp_path, form):
    content = {
        "plain": state,
        "state_dict": {"state_dict": state},
        "ddp": {"model": {f"module.{name}": value for name, value in state.items()}},
        "twice": {f"module.module.{name}": value for name, value in state.items()},
        "legacy": {"model": state},
        "safetensors": state,
    }[form]
    store, name = Store(str(tmp_path)), "weights.safetensors"
    if form == "safetensors":
        save_file(content, tmp_path / name)
    else:
        store, name = written(tmp_path, content, _use_new_zipfile_serialization=form != "legacy")
    weights = read_weights(store, name)
    assert set(weights.state) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in weights.state.items())


def test_heads_may_be_given(state, tmp_path):
    store, name = written(tmp_path, state)
    weights = read_weights(store, name, num_heads=6, decoder_num_heads=8)
    assert (weights.model.num_heads, weights.model.decoder_num_heads) == (6, 8)
    assert not [note for note in weights.notes if "heads" in note]
    with pytest.raises(WeightsRefused, match="num_heads: must divide embed_dim 192"):
        read_weights(store, name, num_heads=5)


# --- RC-MAE ----------------------------------------------------------------------------------------------------------


def nested(student, teacher):
    return {"student": {f"module.{name}": value for name, value in student.items()}, "teacher": teacher, "epoch": 1}


def without_ddp(student, teacher):
    return {"student_without_ddp": student, "teacher_without_ddp": teacher, "scaler": {"scale": 1.0}}


def prefixed(student, teacher):
    return {"model": {f"{part}.{name}": value for part, state in (("student", student), ("teacher", teacher))
                      for name, value in state.items()}}  # fmt: skip


def wrapped(student, teacher):
    return {f"module.{name}": value for name, value in prefixed(student, teacher)["model"].items()}


@pytest.mark.parametrize("form", [nested, without_ddp, prefixed, wrapped])
def test_student_and_teacher_are_both_read_and_the_teacher_is_taken(state, tmp_path, form):
    teacher = {name: value + 0.01 for name, value in state.items()}
    weights = read_weights(*written(tmp_path, form(state, teacher)))
    assert (weights.source_format, set(weights.networks)) == ("rc_mae_pth", {"student", "teacher"})
    for found, expected in ((weights.state, teacher), (weights.networks["student"], state)):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert weights.networks["teacher"] is weights.state
    assert check_forward(weights) < TOLERANCE / 10
    weights.networks["student"]["norm.bias"].add_(1.0)
    with pytest.raises(WeightsRefused, match="deviates from its source"):
        check_forward(weights)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_one_of_the_two_may_be_there_alone(state, tmp_path, part):
    weights = read_weights(*written(tmp_path, {part: state}))
    assert list(weights.networks) == [part]
    assert torch.equal(weights.state["cls_token"], state["cls_token"])


# --- refusals --------------------------------------------------------------------------------------------------------


def changed(**tensors):
    """The state with tensors changed; those that are None are removed."""
    return lambda state: {name: value for name, value in (state | tensors).items() if value is not None}


REFUSED = {
    "missing": (changed(**{"blocks.1.mlp.fc2.bias": None}), "weights.pth: blocks.1.mlp.fc2.bias: missing"),
    "unknown": (changed(temperature=torch.ones(1)), "weights.pth: temperature: unknown to a plain Vision Transformer"),
    "shape": (
        changed(**{"blocks.1.mlp.fc1.weight": torch.ones(700, 192)}),
        "weights.pth: blocks.1.mlp.fc1.weight: has the shape (700, 192), and (768, 192) is expected",
    ),
    "nan": (changed(**{"norm.bias": torch.full((192,), float("nan"))}), "weights.pth: norm.bias: holds NaN or"),
    "integers": (
        changed(**{"norm.bias": torch.ones(192, dtype=torch.int8)}), "weights.pth: norm.bias: is strided int8 on cpu",
    ),
    "sparse": (changed(**{"norm.bias": torch.ones(192).to_sparse()}), "norm.bias: is sparse_coo float32 on cpu"),
    "repeated": (changed(**{"norm.bias": torch.ones(1).expand(192)}), "weights.pth: norm.bias: repeats a part"),
    "registers": (changed(reg_token=torch.ones(1, 4, 192)), "it has register tokens (reg_token)"),
    "scale": (changed(**{"blocks.0.ls1.gamma": torch.ones(192)}), "it has layer scale (blocks.0.ls1.gamma)"),
    "beit": (changed(**{"blocks.0.gamma_1": torch.ones(192)}), "it has layer scale (blocks.0.gamma_1)"),
    "gated": (changed(**{"blocks.0.mlp.w12.weight": torch.ones(2, 2)}), "a gated MLP (SwiGLU)"),
    "relative": (changed(**{"rel_pos_bias.relative_position_bias_table": torch.ones(2)}), "relative position biases"),
    "distilled": (changed(dist_token=torch.ones(1, 1, 192)), "a distillation token (dist_token)"),
    "no class": (changed(cls_token=None), "it has no class token (cls_token is missing)"),
    "no positions": (changed(pos_embed=None), "it has no position embedding (pos_embed is missing)"),
    "no bias": (changed(**{"blocks.0.attn.qkv.bias": None}), "no biases in attention (qkv_bias false)"),
    "fine-tuned": (
        changed(**{"norm.weight": None, "norm.bias": None, "fc_norm.weight": torch.ones(192)}),
        "its final norm stands behind the mean of the patch tokens (fc_norm without norm)",
    ),
    "class without position": (changed(pos_embed=torch.ones(1, 16, 192)), "the class token seems to have no position"),
    "not square": (changed(pos_embed=torch.ones(1, 13, 192)), "the 12 patches fill no square"),
    "kernel": (
        changed(**{"patch_embed.proj.weight": torch.ones(192, 192)}),
        "patch_embed.proj.weight: has the shape (192, 192), and (width, channels, side, side) is expected",
    ),
    "positions": (
        changed(pos_embed=torch.ones(17, 192)), "pos_embed: has the shape (17, 192), and (1, 1 + patches, 192)",
    ),
    "decoder": (changed(**{"decoder_embed.weight": None}), "has parts of a decoder but no matrix decoder_embed.weight"),
    "width": (
        lambda state: {"cls_token": state["cls_token"], "pos_embed": torch.ones(1, 17, 200),
                       "patch_embed.proj.weight": torch.ones(200, 3, 8, 8), "patch_embed.proj.bias": torch.ones(200),
                       "blocks.0.attn.qkv.bias": torch.ones(1), "blocks.0.attn.proj.bias": torch.ones(1)},
        "how many attention heads its encoder of width 200 has, and tensors cannot tell: give num_heads",
    ),
    "transformers": (lambda _: {"vit.embeddings.cls_token": torch.ones(1)}, "name the folder that has its config.json"),
    "other network": (lambda _: {"conv1.weight": torch.ones(1)}, "is no Vision Transformer by timm's or MAE's names"),
    "no tensors": (lambda _: {"epoch": 3}, "weights.pth: holds no tensors by name, and none of model, state_dict"),
    "list": (lambda state: list(state.values()), "weights.pth: holds no tensors by name, but a list"),
    "number": (lambda state: state | {"epoch": 3}, "must hold tensors by name, and epoch is of type int"),
    "numbered": (lambda _: {"model": {0: torch.ones(1)}}, "must hold tensors by name, not by 0"),
    "empty": (lambda _: {"model": {}}, "must hold tensors by name, and there is nothing"),
    "ambiguous": (lambda state: {"model": state, "teacher": state}, "holds teacher, model: keep the networks"),
    "twice": (lambda state: {"teacher": state, "teacher_without_ddp": state}, "holds its teacher twice"),
    "objects": (
        lambda state: {"model": state, "args": argparse.Namespace(output=PurePosixPath("/out"))},
        "weights.pth: holds objects of pathlib.PurePosixPath beside the tensors, and only tensors are read. If you tr",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_used_are_refused_with_tensor_and_reason(state, tmp_path, case):
    change, told = REFUSED[case]
    with pytest.raises(WeightsRefused, match=re.escape(told)):
        read_weights(*written(tmp_path, change(state)))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_damaged_files_are_refused(state, tmp_path, ending):
    name = f"weights{ending}"
    file = tmp_path / name
    torch.save(state, file) if ending == ".pth" else save_file(state, file)
    whole = file.read_bytes()
    for content, told in (
        (whole[: len(whole) // 2], "damaged"),
        (b"\0" * 4096, "damaged"),
        (b"not a file of weights" * 100, "damaged"),
        (b"", "the file is empty"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsRefused, match=f"{name}: .*{told}"):
            read_weights(Store(str(tmp_path)), name)


def test_what_was_read_does_not_change_with_the_file(state, tmp_path):
    """The file is mapped into memory; what the check has seen must be what is exported later."""
    store, name = written(tmp_path, state)
    weights = read_weights(store, name)
    with (tmp_path / name).open("r+b") as file:
        file.write(bytes((tmp_path / name).stat().st_size))
    assert all(torch.equal(value, state[key]) for key, value in weights.state.items())


def test_files_above_the_limit_are_not_read(state, tmp_path, monkeypatch):
    store, name = written(tmp_path, state)
    size = (tmp_path / name).stat().st_size
    monkeypatch.setattr(source, "MOST_WEIGHT_BYTES", size - 1)
    with pytest.raises(WeightsRefused, match=f"has {size:,} bytes, and at most {size - 1:,} are read"):
        read_weights(store, name)


# --- timm, without timm ----------------------------------------------------------------------------------------------


def timm_folder(folder, state, **config):
    save_file(encoder_only(state), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"} | config))
    return Store(str(folder))


def test_an_old_folder_of_timm_has_its_settings_at_the_top(network, state, tmp_path):
    store = timm_folder(tmp_path, state, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2], license="mit", crop_pct=0.9)
    weights = read_weights(store)
    assert (weights.mean, weights.std, weights.license) == ((0.5, 0.4, 0.3), (0.2,) * 3, "mit")
    assert (weights.model.num_heads, weights.source_format) == (3, "timm")
    assert (tokens(weights, images()) - features_of(network)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"architecture": "vit_base_patch16_siglip_224"}, "architecture 'vit_base_patch16_siglip_224': of timm only"),
        ({"architecture": "vit_base_patch16_224"}, "stands for the width 768, the tensors have 192"),
        ({"model_args": {"embed_dim": 384}}, "model_args has embed_dim 384, and the tensors have 192"),
        ({"model_args": {"num_heads": True}}, "model_args has num_heads True, which is no number"),
        ({"model_args": {"num_heads": "3"}}, "model_args has num_heads '3', which is no number"),
        ({"model_args": {"num_heads": 7}}, "num_heads: must divide embed_dim 192 (given: 7)"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "model_args has act_layer 'quick_gelu'"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "model_args has norm_layer 'rmsnorm'"),
        ({"model_args": {"rope": True}}, "model_args has rope True, whose meaning is unknown here"),
        ({"model_args": ["depth"]}, "config.json: model_args must be a JSON object, not a list"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.5] * 3}}, "the mean of each channel must be 3 numbers"),
        (
            {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}, "rcmae": {"value_range": [255, 0]}},
            "value_range [255, 0] must rise from black to white",
        ),
    ],
)
def test_configurations_of_timm_that_do_not_fit_are_refused(state, tmp_path, config, told):
    with pytest.raises(WeightsRefused, match=re.escape(told)):
        read_weights(timm_folder(tmp_path, state, **config))


@pytest.mark.parametrize(
    ("settings", "sentence", "rest"),
    [
        ({"crop_pct": 0.9, "interpolation": "bilinear"},
         "The source scales the shorter side to 35 pixels (crop_pct 0.9), bilinearly, and crops the central 32 x 32.",
         "Features differ from"),
        ({"crop_pct": 1.0, "interpolation": "bilinear"},
         "The source scales the shorter side to 32 pixels, bilinearly, and crops the central 32 x 32.",
         "Features differ slightly from"),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, "The source squashes pictures to 32 x 32 pixels, bicubically.",
         "Features of pictures that are not square differ from"),
        ({"crop_pct": 0.9, "crop_mode": "border"},
         "The source fits pictures to 32 x 32 pixels by timm's crop_mode border (crop_pct 0.9), bicubically.",
         "Features differ from"),
        ({}, "The source does not say how it fits pictures.", ""),
        ({"crop_pct": 1.0}, "", ""),
    ],
)  # fmt: skip
def test_how_timm_fits_pictures_otherwise_is_told_in_words(state, tmp_path, settings, sentence, rest):
    settings = settings | {"mean": [0.5] * 3, "std": [0.5] * 3}
    weights = read_weights(timm_folder(tmp_path, state, pretrained_cfg=settings))
    assert weights.fitting == sentence
    told = [note for note in weights.notes if note.startswith("The source") and ("pictures" in note or "side" in note)]
    assert len(told) == bool(sentence)
    assert all(note.startswith(sentence) and rest in note for note in told)


def test_a_folder_of_timm_may_hold_a_file_of_torch(network, state, tmp_path):
    store = timm_folder(tmp_path, state)
    (tmp_path / "model.safetensors").unlink()
    torch.save(encoder_only(state), tmp_path / "pytorch_model.bin")
    assert (tokens(read_weights(store), images()) - features_of(network)).abs().max() < 1e-5
    torch.save(encoder_only(state) | {"epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsRefused, match=r"pytorch_model\.bin: epoch: is of type int"):
        read_weights(store)

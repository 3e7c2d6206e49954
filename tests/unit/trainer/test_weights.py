"""Weights from elsewhere, from folders that transformers makes, and what survives the way into every format."""

import json

import pytest
import torch
from backbones import model_of, shaken
from foreign import DECODER, SIZES, images, moved, rewritten, stored, tokens, version_4, vit, vit_mae
from safetensors.torch import load_file, save_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD
from trainer.data.preprocessing import EIGHT_BITS
from trainer.errors import WeightsRefused
from trainer.export.graph import encoder_of
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.timm import export_timm
from trainer.models.pixels import patchify
from trainer.models.vit import position_embedding
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.pretrain import MethodSpec
from trainer.storage import Store
from trainer.weights.agreement import TOLERANCE, as_network, check_forward
from trainer.weights.foreign import read_weights

POOLER = "The pooler was left out: it is trained for classification, or not at all."
NO_DECODER = "The source has no decoder: reconstructions and the format hf-mae are not possible."


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"num_channels": 1}, {"image_size": [16, 48]}, {"num_channels": 5}])
def test_vit_gives_transformers_features(tmp_path, shape):
    network = vit(**shape)
    store = stored(network, tmp_path)
    channels = shape.get("num_channels", 3)
    processor = {"image_mean": [0.1] * channels, "image_std": [0.2] * channels}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    weights = read_weights(store)
    height, width = shape.get("image_size", (32, 32))
    pictures = images(channels, height, width)
    with torch.no_grad():
        theirs = network(pictures).last_hidden_state
    assert (tokens(weights, pictures) - theirs).abs().max() < 1e-5
    assert check_forward(weights) < TOLERANCE / 10
    assert (weights.source_format, weights.has_decoder, weights.networks) == ("vit", False, {})
    assert (weights.model.height, weights.model.width, weights.model.in_chans) == (height, width, channels)
    assert {POOLER, NO_DECODER} <= set(weights.notes)
    assert not [name for name in weights.state if is_decoder(name)]
    assert all(value.dtype == torch.float32 for value in weights.state.values())


@pytest.mark.parametrize("names", ["as saved", "4", "5", "sharded", "bin"])
def test_vit_mae_gives_transformers_features_and_predictions_by_every_version_s_names(tmp_path, names):
    network = vit_mae()
    store = stored(network, tmp_path, **{"max_shard_size": "20KB"} if names == "sharded" else {})
    file = tmp_path / "model.safetensors"
    if names == "4":
        save_file(version_4(network.state_dict()), file)
    if names == "5":
        save_file(network.state_dict(), file)
        assert "vit.layers.0.attention.q_proj.weight" in load_file(file)
    if names == "sharded":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    if names == "bin":
        file.unlink()
        torch.save(version_4(network.state_dict()), tmp_path / "pytorch_model.bin")
    weights = read_weights(store)
    model, pictures = weights.model, images()
    assert (weights.source_format, weights.has_decoder) == ("vit_mae", True)
    assert (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads) == (16, 2, 2)
    assert check_forward(weights) < TOLERANCE / 10
    noise = torch.rand(3, model.patches, generator=torch.Generator().manual_seed(1))
    order = noise.argsort(dim=1)
    index = order[:, :, None].expand(-1, -1, model.patch_values)
    visible = patchify(pictures, 8).gather(1, index[:, :4])
    with torch.no_grad():
        ours = as_network(model, weights.state)(visible, order)
        theirs = network(pictures, noise=noise).logits.gather(1, index[:, 4:])
        network.config.mask_ratio = 0.0
        whole = network.vit(pictures, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
    assert (ours - theirs).abs().max() < 1e-5
    assert (tokens(weights, pictures) - whole).abs().max() < 1e-5
    assert set(weights.sha256) >= {"config.json"}
    assert len(weights.sha256) == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("kind", [ViTForImageClassification, ViTForMaskedImageModeling, ViTMAEModel, ViTModel])
def test_only_the_encoder_is_taken_of_other_heads_which_a_note_says(tmp_path, kind):
    settings = ViTMAEConfig(**SIZES | DECODER) if kind is ViTMAEModel else ViTConfig(**SIZES, encoder_stride=8)
    network = moved(kind(settings))
    weights = read_weights(stored(network, tmp_path))
    encoder = network if kind in (ViTModel, ViTMAEModel) else network.vit
    with torch.no_grad():
        if kind is ViTMAEModel:
            network.config.mask_ratio = 0.0
            theirs = network(images(), noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
        else:
            theirs = encoder(images()).last_hidden_state
    assert (tokens(weights, images()) - theirs).abs().max() < 1e-5
    assert not weights.has_decoder
    dropped = {
        ViTForImageClassification: ["The classifier was left out"],
        ViTForMaskedImageModeling: ["The encoder's mask token", "The decoder of ViTForMaskedImageModeling"],
        ViTMAEModel: [],
        ViTModel: ["The pooler was left out"],
    }[kind]
    for words in dropped:
        assert [note for note in weights.notes if note.startswith(words)], weights.notes
    assert not dropped or "left out" not in " ".join(n for n in weights.notes if not n.startswith(tuple(dropped)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_which_a_note_says(tmp_path, dtype):
    network = vit().to(dtype)
    weights = read_weights(stored(network, tmp_path))
    assert {value.dtype for value in weights.state.values()} == {torch.float32}
    assert torch.equal(weights.state["pos_embed"], network.embeddings.position_embeddings.detach().float())
    name = str(dtype).removeprefix("torch.")
    assert f"Tensors of {name} were converted to float32." in weights.notes
    assert check_forward(weights) < TOLERANCE


def test_another_epsilon_is_measured_and_told(tmp_path):
    store = stored(vit(layer_norm_eps=1e-12), tmp_path)
    weights = read_weights(store)
    deviation = check_forward(weights)
    assert 1e-5 < deviation < 1e-3
    assert weights.norm_eps == 1e-12
    assert any(note.startswith("The source's LayerNorms add 1e-12 to the variance, and here") for note in weights.notes)
    large = read_weights(rewritten(tmp_path, layer_norm_eps=0.5))
    with pytest.raises(WeightsRefused, match=r"with the source's layer_norm_eps 0\.5 its output deviates by") as caught:
        check_forward(large)
    assert str(caught.value).endswith("a network that nobody has trained has features too small for this check")


# --- the check catches what tensors' shapes cannot -------------------------------------------------------------------


def swapped_rows(state):
    query, key, value = state["blocks.0.attn.qkv.weight"].chunk(3)
    state["blocks.0.attn.qkv.weight"] = torch.cat([key, query, value])


def transposed(state):
    state["blocks.1.attn.proj.weight"] = state["blocks.1.attn.proj.weight"].T.contiguous()


def columns_first(state):
    weight = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = weight.transpose(2, 3).contiguous()


def positions_by_column(state):
    grid = state["pos_embed"][:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], grid], dim=1)


def channels_first(state):
    order = torch.arange(192).view(8, 8, 3).permute(2, 0, 1).flatten()
    for leaf in ("weight", "bias"):
        state[f"decoder_pred.{leaf}"] = state[f"decoder_pred.{leaf}"][order]


def decoder_positions(state):
    state["decoder_pos_embed"] = state["decoder_pos_embed"].roll(1, dims=1)


def exchanged_norms(state):
    state["blocks.0.norm1.weight"], state["blocks.0.norm2.weight"] = (
        state["blocks.0.norm2.weight"], state["blocks.0.norm1.weight"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    [
        swapped_rows,
        transposed,
        columns_first,
        positions_by_column,
        channels_first,
        decoder_positions,
        exchanged_norms,
    ],
)
def test_the_check_of_the_forward_pass_finds_what_was_exchanged(tmp_path, fault):
    weights = read_weights(stored(vit_mae(), tmp_path))
    check_forward(weights)
    fault(weights.state)
    with pytest.raises(WeightsRefused, match="the converted network deviates from its source by"):
        check_forward(weights)


def test_the_check_refuses_a_result_that_is_no_number(tmp_path):
    weights = read_weights(stored(vit(), tmp_path))
    weights.state["norm.weight"].fill_(float("nan"))
    with pytest.raises(WeightsRefused, match="deviates from its source by nan"):
        check_forward(weights)


# --- normalisation, licence, position embeddings ---------------------------------------------------------------------


def test_without_a_processor_imagenet_s_normalisation_is_assumed_which_a_note_says(tmp_path):
    weights = read_weights(stored(vit(), tmp_path))
    assert (weights.mean, weights.std, weights.value_range) == (IMAGENET_MEAN, IMAGENET_STD, EIGHT_BITS)
    assert weights.statistics_origin == "ImageNet default"
    assert "The source does not say how images are normalised: ImageNet's mean and deviation were assumed." in (
        weights.notes
    )


@pytest.mark.parametrize(
    ("settings", "mean", "std", "value_range"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}, (0.5, 0.4, 0.3), (0.2,) * 3, (0, 255)),
        ({"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "rescale_factor": 1 / 65535}, (0.5,) * 3, (0.2,) * 3,
         (0, 65535)),
        ({"do_normalize": False}, (0,) * 3, (1,) * 3, (0, 255)),
        ({"do_rescale": False, "image_mean": [100] * 3, "image_std": [50] * 3}, (100,) * 3, (50,) * 3, (0, 1)),
    ],
)  # fmt: skip
def test_the_processor_s_normalisation_is_taken(tmp_path, settings, mean, std, value_range):
    store = stored(vit(), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    weights = read_weights(store)
    assert (weights.mean, weights.std, weights.value_range) == (mean, std, value_range)
    assert weights.statistics_origin == "preprocessor_config.json"


HERE = "Here their shorter side becomes 32 pixels, bicubically, and the centre is cropped."
THEIRS = "from those that its makers' own code gives"
ACROSS = "Here they are squashed to 16 x 48 pixels, bicubically."


@pytest.mark.parametrize(
    ("settings", "shape", "sentence", "rest"),
    [
        ({"size": 32, "resample": 3}, {}, "The source squashes pictures to 32 x 32 pixels, bicubically.",
         f"{HERE} Features of pictures that are not square differ {THEIRS}."),
        ({"size": {"height": 32, "width": 32}, "resample": 2, "do_center_crop": False, "crop_size": 16}, {},
         "The source squashes pictures to 32 x 32 pixels, bilinearly.",
         f"{HERE} Features of pictures that are not square differ {THEIRS}, and those of others differ slightly."),
        ({"size": {"shortest_edge": 36}, "resample": 2, "do_center_crop": True, "crop_size": 32}, {},
         "The source scales the shorter side to 36 pixels, bilinearly, and crops the central 32 x 32.",
         f"{HERE} Features differ {THEIRS}."),
        ({"size": 32, "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "crop_size": 32}, {},
         "The source scales the shorter side to 32 pixels and crops the central 32 x 32.",
         f"{HERE} Features may differ slightly {THEIRS}."),
        ({"size": 32, "resample": 2}, {"image_size": [16, 48]},
         "The source squashes pictures to 32 x 32 pixels, bilinearly.", f"{ACROSS} Features differ {THEIRS}."),
        ({"size": {"height": 16, "width": 48}, "resample": 2}, {"image_size": [16, 48]},
         "The source squashes pictures to 16 x 48 pixels, bilinearly.", f"{ACROSS} Features differ slightly {THEIRS}."),
        ({"do_resize": False}, {}, "The source does not resize pictures.", f"{HERE} Features differ {THEIRS}."),
        ({}, {}, "The source does not say how it fits pictures.", ""),
        ({"size": {"longest_edge": 32}}, {}, "The source does not say how it fits pictures.", ""),
        ({"size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True, "crop_size": 32}, {}, "", ""),
    ],
)  # fmt: skip
def test_how_the_source_fits_pictures_otherwise_is_told_in_words(tmp_path, settings, shape, sentence, rest):
    store = stored(vit(**shape), tmp_path)
    settings = settings | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    weights = read_weights(store)
    assert weights.fitting == sentence
    told = f"{sentence} {rest}".strip()
    assert [note for note in weights.notes if "pictures" in note or "centre" in note] == ([told] if told else [])


def test_the_card_s_licence_is_reported(tmp_path):
    store = stored(vit(), tmp_path)
    assert read_weights(store).license is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# A card\n")
    assert read_weights(store).license == "apache-2.0"
    for broken in ("[broken", "[" * 5000, "mit\ndate: 2024-13-45"):
        (tmp_path / "README.md").write_text(f"---\nlicense: {broken}\n---\n# A card\n")
        assert read_weights(store).license is None


def test_learned_positions_survive_into_every_format(tmp_path):
    network = vit_mae()
    source = stored(network, tmp_path / "source")
    weights = read_weights(source)
    learned = network.vit.embeddings.position_embeddings.detach()
    assert (learned - position_embedding((4, 4), 24)).abs().max() > 0.1
    note = "is no two-dimensional sine-cosine embedding; it is kept as it is"
    assert [told.split()[0] for told in weights.notes if note in told] == ["pos_embed", "decoder_pos_embed"]
    facts = (weights.state, weights.model)
    export_vit(*facts, weights.mean, weights.std, tmp_path / "hf")
    export_vit_mae(*facts, MethodSpec(), weights.mean, weights.std, tmp_path / "hf-mae")
    export_timm(*facts, weights.mean, weights.std, tmp_path / "timm")
    theirs = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf-mae")
    assert torch.equal(theirs.vit.embeddings.position_embeddings, learned)
    assert torch.equal(theirs.decoder.decoder_pos_embed, network.decoder.decoder_pos_embed)
    assert torch.equal(encoder_of(*facts).pos_embed, learned)
    again = as_network(weights.model, weights.state)
    assert torch.equal(again.pos_embed, learned)
    assert torch.equal(again.decoder_pos_embed, network.decoder.decoder_pos_embed.detach())
    with torch.no_grad():
        features = ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False)(images()).last_hidden_state
    assert (features - tokens(weights, images())).abs().max() < 1e-5


WIDE, GREY = {"img_size": [16, 48]}, {"in_chans": 1}


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("hf", {}), ("hf", WIDE), ("hf", GREY), ("hf-mae", {}), ("hf-mae", GREY), ("timm", {}), ("timm", WIDE),
        ("timm", GREY),
    ],
)  # fmt: skip
def test_what_is_exported_here_is_read_back_bit_for_bit(tmp_path, form, shape):
    model = model_of(**shape)
    state = shaken(model).state_dict()
    mean, std = (0.5, 0.4, 0.3)[: model.in_chans], (0.2, 0.3, 0.4)[: model.in_chans]
    if form == "hf":
        export_vit(state, model, mean, std, tmp_path / "made")
    elif form == "hf-mae":
        export_vit_mae(state, model, MethodSpec(), mean, std, tmp_path / "made")
    else:
        export_timm(state, model, mean, std, tmp_path / "made", "mit", value_range=(0.0, 65535.0))
    weights = read_weights(Store(str(tmp_path)), "made")
    assert weights.model == model if form == "hf-mae" else weights.model.grid == model.grid
    assert (weights.mean, weights.std) == (mean, std)
    assert weights.value_range == ((0, 65535) if form == "timm" else (0, 255))
    assert set(weights.state) == {name for name in state if form == "hf-mae" or not is_decoder(name)}
    assert all(torch.equal(value, state[name]) for name, value in weights.state.items())
    assert weights.notes == (() if form == "hf-mae" else (NO_DECODER,))
    assert weights.license == ("mit" if form == "timm" else None)
    check_forward(weights)


def test_folders_in_s3_are_read_like_local_ones(tmp_path, s3, use_s3):
    use_s3(s3.environment(s3.endpoint))
    network = vit_mae()
    local = stored(network, tmp_path / "made", max_shard_size="20KB")
    remote = Store(s3.bucket("weights"))
    remote.upload(tmp_path / "made", "some/folder")
    there, here = read_weights(remote, "some/folder"), read_weights(local)
    assert (there.model, there.notes, there.sha256) == (here.model, here.notes, here.sha256)
    assert all(torch.equal(value, here.state[name]) for name, value in there.state.items())
    assert check_forward(there) == check_forward(here)  # its temporary copy is gone
    torch.save({"model": here.state | {"temperature": torch.ones(1)}}, tmp_path / "one.pth")
    remote.upload(tmp_path, "single")
    with pytest.raises(WeightsRefused, match=r"one\.pth: temperature: unknown"):
        read_weights(remote, "single/one.pth", num_heads=3, decoder_num_heads=2)
    with pytest.raises(WeightsRefused, match=r"s3://.*/absent: the folder is empty or does not exist"):
        read_weights(remote, "absent")

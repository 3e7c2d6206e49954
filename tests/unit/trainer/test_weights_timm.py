"""Weights from elsewhere, from folders that real timm makes by its own function."""

import json
import re

import pytest
import torch
from readers import run

from trainer.errors import WeightsRefused
from trainer.storage import Store
from trainer.weights.agreement import TOLERANCE, as_network, check_forward
from trainer.weights.foreign import read_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first to ask for the environment makes it

NETWORKS = {
    "sizes": ("vit_small_patch16_224", {
        "img_size": [16, 48], "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 3,
        "num_classes": 5,
    }),
    "pooled": ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "global_pool": "avg", "fc_norm": False}),
    "named": ("vit_tiny_patch16_224", {}),
    "deit": ("deit_tiny_patch16_224", {"depth": 1}),
    "other-size": ("vit_tiny_patch16_224", {"img_size": 48, "depth": 1}),
}  # fmt: skip
NOT_PLAIN = {
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2}, "register tokens (reg_token)"),
    "layer-scale": ("vit_tiny_patch16_224", {"init_values": 1e-5}, "layer scale (blocks.0.ls1.gamma)"),
    "pre-norm": ("vit_tiny_patch16_224", {"pre_norm": True}, "a norm before the blocks (norm_pre.bias)"),
    "no-class": (
        "vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}, "no class token",
    ),
    "no-bias": ("vit_tiny_patch16_224", {"qkv_bias": False}, "no biases in attention (qkv_bias false)"),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}, "normalised queries and keys"),
    "fc-norm": ("vit_tiny_patch16_224", {"global_pool": "avg"}, "(fc_norm without norm)"),
    "map": ("vit_tiny_patch16_224", {"global_pool": "map"}, "attention pooling"),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, "a distillation token (dist_token)"),
    "relative": ("vit_relpos_small_patch16_224", {}, "relative position biases"),
    "deit3": ("deit3_small_patch16_224", {}, "layer scale"),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 28}, "layer scale"),
    "beit": ("beit_base_patch16_224", {}, "other projections in attention (blocks.0.attn.q_bias)"),
    "eva": ("eva02_tiny_patch14_224", {}, "other projections in attention"),
    "parallel": ("vit_small_patch16_18x2_224", {}, "parallel blocks"),
    "clip": ("vit_base_patch32_clip_224", {}, "a norm before the blocks"),
    "gelu-tanh": ("vit_small_patch16_224", {"act_layer": "gelu_tanh"}, "model_args has act_layer 'gelu_tanh'"),
    "swin": ("swin_tiny_patch4_window7_224", {}, "relative position biases"),
    "resnet": ("resnet18", {}, "is no Vision Transformer by timm's or MAE's names"),
}  # fmt: skip

MAKE = """
import json
import torch
import timm
from timm.models import save_for_hf

kept = {}
for name, (architecture, arguments, safe, stated) in json.loads(%r).items():
    torch.manual_seed(0)
    try:
        network = timm.create_model(architecture, **{"depth": 1, **arguments} if not stated else arguments).eval()
    except TypeError:
        network = timm.create_model(architecture, **arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_for_hf(network, name, model_args=arguments if stated else None, safe_serialization=safe)
    if stated:
        size = arguments.get("img_size", 224)
        height, width = size if isinstance(size, list) else (size, size)
        images = torch.randn(2, arguments.get("in_chans", 3), height, width)
        with torch.no_grad():
            kept[f"{name}.images"], kept[f"{name}.tokens"] = images, network.forward_features(images)
kept["any"] = torch.zeros(1)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders made by timm, and its own features of random images."""
    root = tmp_path_factory.mktemp("timm") / "made"
    wanted = {name: (*made, name != "deit", True) for name, made in NETWORKS.items()}
    wanted |= {name: (architecture, made, True, False) for name, (architecture, made, _) in NOT_PLAIN.items()}
    return root, run("timm", MAKE % json.dumps(wanted), root)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_timm_s(folders, name):
    root, kept = folders
    weights = read_weights(Store(str(root)), name)
    assert weights.source_format == "timm"
    assert check_forward(weights) < TOLERANCE / 10
    with torch.no_grad():
        ours = as_network(weights.model, weights.state).encode(kept[f"{name}.images"])
    assert (ours - kept[f"{name}.tokens"]).abs().max() < 1e-5
    assert any(note.startswith("pos_embed is no two-dimensional sine-cosine embedding") for note in weights.notes)


def test_sizes_and_normalisation_are_those_of_the_configuration(folders):
    weights = read_weights(Store(str(folders[0] / "sizes")))
    model = weights.model
    assert (model.height, model.width, model.patch_size, model.in_chans) == (16, 48, 4, 1)
    assert (model.embed_dim, model.depth, model.num_heads) == (24, 2, 3)
    named = read_weights(Store(str(folders[0] / "named")))
    assert (named.model.num_heads, named.model.preset) == (3, "vit_tiny_patch16_224")
    assert (named.mean, named.std, named.statistics_origin) == ((0.5,) * 3, (0.5,) * 3, "pretrained_cfg")
    assert "The classifier was left out: a backbone has no classes." in named.notes
    assert any("crop_pct 0.9" in note for note in named.notes)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_no_plain_network_is_refused_by_name(folders, name):
    with pytest.raises(WeightsRefused, match=re.escape(NOT_PLAIN[name][2])):
        read_weights(Store(str(folders[0])), name)

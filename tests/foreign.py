"""Networks of transformers in their folders, for tests of weights from elsewhere."""

from __future__ import annotations

import json

import torch
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from trainer.storage import Store
from trainer.weights.agreement import as_network

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 32,
    "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
DECODER = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}  # fmt: skip


def moved(network, seed=0):
    """The network with no weight at its starting value, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def vit(**changes):
    return moved(ViTModel(ViTConfig(**SIZES | changes)))


def vit_mae(**changes):
    return moved(ViTMAEForPreTraining(ViTMAEConfig(**SIZES | DECODER | changes)))


def stored(network, folder, **options):
    network.save_pretrained(folder, **options)
    return Store(str(folder))


def images(channels=3, height=32, width=32):
    return torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0))


def tokens(weights, pictures):
    with torch.no_grad():
        return as_network(weights.model, weights.state).encode(pictures)


def rewritten(folder, **config):
    """The folder with fields of config.json changed; those that are None are removed."""
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | config
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return Store(str(folder))


TO_VERSION_4 = {
    ".attention.q_proj.": ".attention.attention.query.", ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.", ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.", ".mlp.fc2.": ".output.dense.", "vit.layers.": "vit.encoder.layer.",
}  # fmt: skip


def version_4(tensors):
    """Tensors by the names that transformers 4 writes for ViTMAE."""
    renamed = {}
    for name, value in tensors.items():
        for five, four in TO_VERSION_4.items():
            name = name.replace(five, four)  # noqa: PLW2901 - several parts of one name
        renamed[name] = value.clone()
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in renamed
    assert "vit.encoder.layer.0.output.dense.bias" in renamed
    return renamed

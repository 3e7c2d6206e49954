"""A backbone as a folder that `transformers.ViTModel.from_pretrained` loads.

Keys are those of transformers 4, which load exactly in 4 and 5 alike; the folder is written without transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trainer.models.vit import MLP_RATIO, NORM_EPS
from trainer.spec.pretrain import ModelSpec

BICUBIC = 3

_OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_INNER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DECODER = ("decoder", "mask_token")


def export_vit(
    weights: Mapping[str, Tensor], model: ModelSpec, mean: tuple[float, ...], std: tuple[float, ...], out: Path
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` into the new folder ``out``.

    ``weights`` is a `MaskedAutoencoder`'s state; of it the encoder's tensors are written, value for value.
    """
    out.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not name.startswith(_DECODER):
            tensors |= {key: part.contiguous() for key, part in _renamed(name, value)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(_config(model), indent=2) + "\n")
    (out / "preprocessor_config.json").write_text(json.dumps(_preprocessor(model, mean, std), indent=2) + "\n")


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """An encoder tensor under its Hugging Face names; the joint projection becomes query, key and value."""
    if name in _OUTER:
        return [(_OUTER[name], value)]
    layer, _, leaf = name.rpartition(".")
    if layer in _OUTER:
        return [(f"{_OUTER[layer]}.{leaf}", value)]
    _, index, inner = layer.split(".", 2)
    place = f"encoder.layer.{index}"
    if inner == "attn.qkv":
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return [(f"{place}.attention.attention.{part}.{leaf}", tensor) for part, tensor in parts]
    return [(f"{place}.{_INNER[inner]}.{leaf}", value)]


def _config(model: ModelSpec) -> dict[str, Any]:
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": MLP_RATIO * model.embed_dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": NORM_EPS,
        "image_size": model.height if model.height == model.width else [model.height, model.width],
        "patch_size": model.patch_size,
        "num_channels": model.in_chans,
        "qkv_bias": True,
        "encoder_stride": model.patch_size,
        "torch_dtype": "float32",
    }


def _preprocessor(model: ModelSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": model.height, "width": model.width},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }

"""Names of a backbone's tensors in other libraries, without importing any. The trainer's own names are timm's."""

from __future__ import annotations

from typing import Final

_HF_OUTER: Final = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_HF_INNER: Final = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_MM_OUTER: Final = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj": "patch_embed.projection",
    "norm": "ln1",
}
_MM_INNER: Final = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}
_LAYERS: Final = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
MAE_ENCODER: Final = "vit."
"""Prefix of the encoder's names in transformers' ViTMAE, and in its ViTForImageClassification."""


def encoder_names(depth: int) -> list[str]:
    """Every tensor of an encoder with ``depth`` blocks, in the order of the network."""
    layers = ["patch_embed.proj", *(f"blocks.{i}.{layer}" for i in range(depth) for layer in _LAYERS), "norm"]
    return ["cls_token", "pos_embed", *(f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias"))]


def is_decoder(name: str) -> bool:
    """Whether a tensor is the decoder's."""
    return name.startswith("decoder_") or name == "mask_token"


def hf_names(name: str) -> tuple[str, ...]:
    """Names of an encoder's tensor in transformers: three for the joint projection, for query, key and value rows.

    These are the names in transformers 4, which version 5 loads too.
    """
    layer, leaf = _split(name, _HF_OUTER)
    if layer in _HF_OUTER:
        return (f"{_HF_OUTER[layer]}{leaf}",)
    _, index, inner = layer.split(".", 2)
    return _hf_block(f"encoder.layer.{index}", inner, leaf)


def hf_mae_names(name: str) -> tuple[str, ...]:
    """Names of a tensor in transformers' ViTMAE, which has the decoder too."""
    if not is_decoder(name):
        return tuple(f"{MAE_ENCODER}{hf}" for hf in hf_names(name))
    if not name.startswith("decoder_blocks."):
        return (f"decoder.{name}",)
    layer, leaf = _split(name, {})
    _, index, inner = layer.split(".", 2)
    return _hf_block(f"decoder.decoder_layers.{index}", inner, leaf)


def hf_classifier_names(name: str) -> tuple[str, ...]:
    """Names of a classifier's tensor in transformers' ViTForImageClassification: as `hf_names`, and the head's."""
    if name.startswith("head."):
        return (f"classifier.{name.removeprefix('head.')}",)
    return tuple(f"{MAE_ENCODER}{hf}" for hf in hf_names(name))


def mmpretrain_name(name: str) -> str:
    """Name of an encoder's tensor in mmpretrain's VisionTransformer, as the backbone of a model."""
    layer, leaf = _split(name, _MM_OUTER)
    if layer in _MM_OUTER:
        return f"backbone.{_MM_OUTER[layer]}{leaf}"
    _, index, inner = layer.split(".", 2)
    return f"backbone.layers.{index}.{_MM_INNER[inner]}{leaf}"


def _split(name: str, outer: dict[str, str]) -> tuple[str, str]:
    """The layer, and `.weight` or `.bias`; empty for a tensor that belongs to no layer."""
    if name in outer:
        return name, ""
    layer, _, leaf = name.rpartition(".")
    return layer, f".{leaf}"


def _hf_block(block: str, inner: str, leaf: str) -> tuple[str, ...]:
    if inner == "attn.qkv":
        return tuple(f"{block}.attention.attention.{part}{leaf}" for part in ("query", "key", "value"))
    return (f"{block}.{_HF_INNER[inner]}{leaf}",)

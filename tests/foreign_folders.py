"""Folders of weights as other people's libraries save them, of tiny networks with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

SIZES: Final[dict[str, Any]] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 32,
    "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
DECODER: Final[dict[str, Any]] = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
}  # fmt: skip


def save_vit_mae(folder: Path, **config: Any) -> Path:
    """A folder of `ViTMAEForPreTraining`, with a decoder."""
    return _save(ViTMAEForPreTraining(ViTMAEConfig(**SIZES | DECODER | config)), folder)


def save_vit(folder: Path, **config: Any) -> Path:
    """A folder of `ViTModel`, with a pooler."""
    return _save(ViTModel(ViTConfig(**SIZES | config)), folder)


def _save(network: Any, folder: Path) -> Path:
    """Weights far from where training begins, so that no part of them is without effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    network.save_pretrained(folder)
    return folder

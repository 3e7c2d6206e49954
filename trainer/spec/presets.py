"""Vision Transformer presets with the paper's recipe (arXiv 2210.02077, table of pretraining settings)."""

from __future__ import annotations

from typing import Final, NamedTuple


class Preset(NamedTuple):
    """Sizes of the encoder and decoder, and the paper's batch on one device."""

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    micro_batch_size: int
    """Images that go through the network at once; the rest of a worker's share is accumulated."""


PRESETS: Final[dict[str, Preset]] = {
    "vit_tiny_patch16_224": Preset(224, 16, 192, 12, 3, 128, 2, 4, 512),
    "vit_small_patch16_224": Preset(224, 16, 384, 12, 6, 256, 4, 8, 512),
    "vit_base_patch16_224": Preset(224, 16, 768, 12, 12, 512, 8, 16, 256),
    "vit_large_patch16_224": Preset(224, 16, 1024, 24, 16, 512, 8, 16, 256),
    "vit_huge_patch14_224": Preset(224, 14, 1280, 32, 16, 512, 8, 16, 64),
}

DEFAULT_PRESET: Final = "vit_base_patch16_224"

MODEL_FIELDS: Final = tuple(field for field in Preset._fields if field != "micro_batch_size")

"""Vision Transformer presets, the sizes of the paper (arXiv 2210.02077)."""

from __future__ import annotations

from typing import Final, NamedTuple


class Preset(NamedTuple):
    """Sizes of the images, the encoder and the decoder."""

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int


PRESETS: Final[dict[str, Preset]] = {
    "vit_tiny_patch16_224": Preset(224, 16, 192, 12, 3, 128, 2, 4),
    "vit_small_patch16_224": Preset(224, 16, 384, 12, 6, 256, 4, 8),
    "vit_base_patch16_224": Preset(224, 16, 768, 12, 12, 512, 8, 16),
    "vit_large_patch16_224": Preset(224, 16, 1024, 24, 16, 512, 8, 16),
    "vit_huge_patch14_224": Preset(224, 14, 1280, 32, 16, 512, 8, 16),
}

DEFAULT_PRESET: Final = "vit_base_patch16_224"

MODEL_FIELDS: Final = Preset._fields

"""Folders of timm: made by `save_for_hf`, `push_to_hf_hub` or `backbones pull`. Read without timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from trainer.errors import WeightsRefused
from trainer.models.vit import MLP_RATIO, NORM_EPS
from trainer.weights import plain
from trainer.weights.layout import Found, Heads, Layout, checked_model, own_names
from trainer.weights.source import CONFIG, Source, section

ARCHITECTURES: Final = re.compile(
    r"(?:vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+(?:_in21k|_dino|_sam)?(?:\..*)?"
)
"""Names of timm's plain ViTs, whose LayerNorms have our epsilon. Activation and epsilon are in no tensor and in no
configuration, so only networks are read of which timm's name tells them."""
WIDTHS_AND_HEADS: Final = {
    "tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16),
}  # fmt: skip
"""By the size in the architecture's name."""
ACCEPTED: Final[dict[str, tuple[Any, ...]]] = {
    "act_layer": (None, "gelu"), "attn_layer": (None,), "block_fn": (None,), "class_token": (True,),
    "dynamic_img_pad": (False,), "embed_layer": (None,), "embed_norm_layer": (None,), "fc_norm": (None, False),
    "final_norm": (True,), "global_pool": ("", "avg", "avgmax", "max", "token"), "init_values": (None,),
    "mlp_layer": (None,), "mlp_ratio": (MLP_RATIO,), "no_embed_class": (False,), "norm_layer": (None, "layernorm"),
    "pos_embed": ("learn",), "pre_norm": (False,), "proj_bias": (True,), "qk_norm": (False,), "qkv_bias": (True,),
    "reg_tokens": (0,), "scale_attn_norm": (False,), "scale_mlp_norm": (False,),
}  # fmt: skip
"""Values of `model_args` with which the network stays one that `MaskedAutoencoder` computes."""
SIZES: Final = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")
WITHOUT_EFFECT: Final = frozenset({
    "num_classes", "pool_include_prefix", "dynamic_img_size", "strict_img_size", "weight_init", "fix_init", "drop_rate",
    "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
})  # fmt: skip
"""Arguments that change no token in evaluation mode."""


def pretrained_cfg(source: Source) -> Mapping[str, Any]:
    """timm's settings of the weights; in folders of old versions they are the whole configuration."""
    config = source.config or {}
    return section(config, "pretrained_cfg") if "pretrained_cfg" in config else config


def read_timm(source: Source, found: Found, heads: Heads) -> Layout:
    """The network of a folder whose ``config.json`` names an architecture of timm.

    Raises `WeightsRefused` for a network that is no plain Vision Transformer.
    """
    config = source.config or {}
    arguments = section(config, "model_args")
    plain.check_plain(found, source.place)
    _check_arguments(arguments)
    named = ARCHITECTURES.fullmatch(str(config["architecture"]))
    if not named:
        raise WeightsRefused(
            f"{CONFIG}: architecture {config['architecture']!r}: of timm only plain Vision Transformers can be "
            "imported: vit_… and deit_… of the sizes tiny, small, base, large and huge"
        )
    sizes = plain.sizes_of(found, source.place)
    for name in ("patch_size", "in_chans", "embed_dim", "depth"):
        if name in arguments and arguments[name] not in (sizes[name], [sizes[name]] * 2):
            raise WeightsRefused(
                f"{CONFIG}: model_args has {name} {arguments[name]!r}, and the tensors have {sizes[name]}: the two "
                "belong to different networks"
            )
    chosen, notes = _heads(arguments, named[1], sizes["embed_dim"], heads)
    network = {name: sizes[name] for name in ("patch_size", "in_chans", "embed_dim", "depth")}
    img_size = _img_size(arguments, pretrained_cfg(source), sizes, source.place)
    return Layout(
        source_format="timm",
        model=checked_model(network | {"img_size": img_size, "num_heads": chosen}, CONFIG),
        has_decoder=False,
        names=own_names,
        norm_eps=NORM_EPS,
        left_out=plain.LEFT_OUT,
        notes=notes,
    )


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name in SIZES or name in WITHOUT_EFFECT:
            continue
        if name not in ACCEPTED:
            raise WeightsRefused(f"{CONFIG}: model_args has {name} {value!r}, whose meaning is unknown here")
        if value not in ACCEPTED[name]:
            fitting = " or ".join(map(repr, ACCEPTED[name]))
            raise WeightsRefused(
                f"{CONFIG}: model_args has {name} {value!r}: only plain Vision Transformers can be imported, with "
                f"{fitting}"
            )


def _heads(arguments: Mapping[str, Any], size: str, width: int, heads: Heads) -> tuple[int, tuple[str, ...]]:
    """Heads by `model_args`, by the architecture's name, or as given."""
    if "num_heads" in arguments:
        if type(arguments["num_heads"]) is not int:  # neither true nor "3"
            raise WeightsRefused(f"{CONFIG}: model_args has num_heads {arguments['num_heads']!r}, which is no number")
        return heads.agreeing(arguments["num_heads"]), ()
    named_width, named_heads = WIDTHS_AND_HEADS[size]
    if width == named_width:
        return heads.agreeing(named_heads), ()
    if heads.encoder is None:
        raise WeightsRefused(
            f"{CONFIG}: the architecture's name stands for the width {named_width}, the tensors have {width}, and "
            "model_args has no num_heads: give num_heads"
        )
    return heads.encoder, ()


def _img_size(
    arguments: Mapping[str, Any], settings: Mapping[str, Any], sizes: Mapping[str, Any], place: str
) -> int | tuple[int, int]:
    """Height and width by `model_args`, by `pretrained_cfg` if the patches fill them, or else of a square."""
    patch, patches = sizes["patch_size"], sizes["patches"]
    input_size = settings.get("input_size")
    for candidate in (arguments.get("img_size"), input_size[1:] if isinstance(input_size, list) else None):
        height, width = candidate if isinstance(candidate, list) and len(candidate) == 2 else (candidate, candidate)
        if isinstance(height, int) and isinstance(width, int) and (height // patch) * (width // patch) == patches:
            return height if height == width else (height, width)
    return plain.square_image(sizes, place)

"""Tensors by timm's names, which the releases of MAE and RC-MAE use too: sizes, and what is no plain network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.spec.presets import PRESETS
from trainer.weights.layout import Found

CLASSIFIER: Final = "The classifier was left out: a backbone has no classes."
LEFT_OUT: Final = (
    (r"head\..*", CLASSIFIER),
    (r"pre_logits\.fc\..*", "The layer before the classifier was left out: it belongs to the classes."),
    (r"fc_norm\..*", "The norm before the classifier was left out: the backbone's own final norm is kept."),
    (r"mask_token", "The mask token was left out: without a decoder nothing uses it."),
)
NOT_PLAIN: Final = (
    (r"reg_tokens?|register_tokens", "register tokens"),
    (r"dist_token|head_dist\..*", "a distillation token"),
    (r"norm_pre\..*", "a norm before the blocks"),
    (r"attn_pool\..*", "attention pooling"),
    (r"patch_embed\.(backbone|norm|conv|proj\.\d).*", "another patch embedding than one convolution"),
    (r".*(relative_position|rel_pos).*", "relative position biases"),
    (r"blocks\.\d+\.(ls\d\.gamma|gamma_\d)", "layer scale"),
    (r"blocks\.\d+\.attn\.[qk]_norm\..*", "normalised queries and keys"),
    (r"blocks\.\d+\.attn\.[qkv](_proj\.|_bias|\.).*|blocks\.\d+\.attn\.[qv]_bias", "other projections in attention"),
    (r"blocks\.\d+\.attn\.norm\..*", "a norm within attention"),
    (r"blocks\.\d+\.mlp\.(w\d+|fc1_[gx]|gate.*)\..*", "a gated MLP (SwiGLU)"),
    (r"blocks\.\d+\.mlp\.norm\..*", "a norm within the MLP"),
    (r"blocks\.\d+\.(attns|ffns)\..*", "parallel blocks"),
)
"""By name of a tensor, what of a network only it has."""
NEEDED: Final = (
    ("cls_token", "no class token"),
    ("pos_embed", "no position embedding"),
    ("patch_embed.proj.bias", "no bias in the patch embedding"),
    ("blocks.0.attn.qkv.bias", "no biases in attention (qkv_bias false)"),
    ("blocks.0.attn.proj.bias", "no biases in attention (proj_bias false)"),
)
"""What a network lacks without a tensor."""
HEADS: Final = {preset.embed_dim: preset.num_heads for preset in PRESETS.values()}
"""Attention heads of the paper's encoders by width."""
DECODER_HEADS: Final = {preset.decoder_embed_dim: preset.decoder_num_heads for preset in PRESETS.values()}


def check_plain(found: Found, place: str) -> None:
    """Raise `WeightsRefused`, which says why, for a network that `MaskedAutoencoder` cannot compute."""
    names = set(found.tensors)
    if "embeddings.cls_token" in names or "vit.embeddings.cls_token" in names:
        raise WeightsRefused(f"{place}: holds tensors by transformers' names: name the folder that has its config.json")
    if "patch_embed.proj.weight" not in names and not any(re.match(r"patch_embed\.", name) for name in names):
        shown = ", ".join(sorted(names)[:3]) or "nothing"
        raise WeightsRefused(f"{place}: is no Vision Transformer by timm's or MAE's names: it holds {shown} …")
    for name in sorted(names):
        what = next((what for pattern, what in NOT_PLAIN if re.fullmatch(pattern, name)), None)
        if what:
            raise _not_plain(place, f"it has {what} ({name})")
    if "norm.weight" not in names and "fc_norm.weight" in names:
        raise _not_plain(place, "its final norm stands behind the mean of the patch tokens (fc_norm without norm)")
    for name, what in NEEDED:
        if name not in names:
            raise _not_plain(place, f"it has {what} ({name} is missing)")


def _not_plain(place: str, reason: str) -> WeightsRefused:
    return WeightsRefused(f"{place}: only plain Vision Transformers can be imported, and {reason}")


def sizes_of(found: Found, place: str) -> dict[str, Any]:
    """Width, depth, patch and channels by the tensors' shapes, and the number of patches."""
    kernel, positions = found.tensors["patch_embed.proj.weight"], found.tensors["pos_embed"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise _bad_shape(found, "patch_embed.proj.weight", kernel, "(width, channels, side, side)")
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[1] < 2 or positions.shape[2] != len(kernel):
        raise _bad_shape(found, "pos_embed", positions, f"(1, 1 + patches, {len(kernel)})")
    return {
        "patch_size": kernel.shape[2],
        "in_chans": kernel.shape[1],
        "embed_dim": kernel.shape[0],
        "depth": _depth(found, "blocks", place),
        "patches": positions.shape[1] - 1,
    }


def decoder_sizes_of(found: Found, place: str) -> dict[str, Any]:
    """Width and depth of a decoder by the tensors' shapes; nothing if there is none."""
    if not any(name.startswith("decoder_") for name in found.tensors):
        return {}
    embed = found.tensors.get("decoder_embed.weight")
    if embed is None or embed.ndim != 2:
        raise WeightsRefused(f"{place}: has parts of a decoder but no matrix decoder_embed.weight: copy it again")
    return {"decoder_embed_dim": embed.shape[0], "decoder_depth": _depth(found, "decoder_blocks", place)}


def _depth(found: Found, stack: str, place: str) -> int:
    numbers = {int(match[1]) for name in found.tensors if (match := re.match(rf"{stack}\.(\d+)\.", name))}
    if not numbers:
        raise WeightsRefused(f"{place}: has no {stack}: copy it again")
    return max(numbers) + 1


def square_image(sizes: Mapping[str, Any], place: str) -> int:
    """The side of a square image with so many patches; raises `WeightsRefused` if there is none."""
    patches = sizes["patches"]
    side = math.isqrt(patches)
    if side * side != patches:
        without = math.isqrt(patches + 1) ** 2 == patches + 1
        reason = (
            "the class token seems to have no position"
            if without
            else f"the {patches} patches fill no square, and nothing says the image's height and width"
        )
        raise WeightsRefused(
            f"{place}: {reason} (pos_embed has {patches + 1} rows). Weights of images that are not square can be "
            "imported from a timm folder whose config.json has img_size in model_args"
        )
    return int(side * sizes["patch_size"])


def encoder_heads(width: int, given: int | None, place: str) -> tuple[int, tuple[str, ...]]:
    """Attention heads of an encoder whose source does not say them, with the note on the assumption."""
    return _heads("num_heads", "encoder", HEADS, width, given, place)


def decoder_heads(width: int, given: int | None, place: str) -> tuple[int, tuple[str, ...]]:
    """The same for a decoder."""
    return _heads("decoder_num_heads", "decoder", DECODER_HEADS, width, given, place)


def _heads(
    field: str, part: str, known: Mapping[int, int], width: int, given: int | None, place: str
) -> tuple[int, tuple[str, ...]]:
    if given is not None:
        return given, ()
    if width not in known:
        raise WeightsRefused(
            f"{place}: does not say how many attention heads its {part} of width {width} has, and tensors cannot tell: "
            f"give {field}"
        )
    note = (
        f"The source does not say how many attention heads its {part} has: {known[width]} were assumed, as the paper's "
        f"networks of width {width} have. The check of the forward pass cannot find another number."
    )
    return known[width], (note,)


def _bad_shape(found: Found, name: str, value: Tensor, expected: str) -> WeightsRefused:
    return WeightsRefused(f"{found.label(name)}: has the shape {tuple(value.shape)}, and {expected} is expected")

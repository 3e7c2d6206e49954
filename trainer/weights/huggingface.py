"""Folders of transformers: `ViTModel` and its heads, `ViTMAEForPreTraining` and `ViTMAEModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.models.vit import MLP_RATIO
from trainer.protocol.tensor_names import MAE_ENCODER, hf_mae_names, hf_names, is_decoder
from trainer.spec.pretrain import ModelSpec
from trainer.weights.layout import Found, Heads, Layout, SourceFormat, checked_model
from trainer.weights.source import CONFIG, Source, tensors_of

MODEL_TYPES: Final[dict[str, SourceFormat]] = {"vit": "vit", "vit_mae": "vit_mae"}
DEFAULTS: Final = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "qkv_bias": True, "decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}  # fmt: skip
"""What transformers takes for a field that ``config.json`` lacks."""
LEFT_OUT: Final = (
    (r"pooler\..*", "The pooler was left out: it is trained for classification, or not at all."),
    (r"classifier\..*", "The classifier was left out: a backbone has no classes."),
    (r"embeddings\.mask_token", "The encoder's mask token was left out: only other ways of pretraining use it."),
    (r"decoder\.0\..*", "The decoder of ViTForMaskedImageModeling was left out: it is none of MAE's."),
)
_VERSION_5: Final = (
    (r"(^|\.)decoder_encoder\.layer\.", r"\1decoder_layers."),  # some versions write the decoder's names so
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
"""From the names in transformers 5 to those in version 4."""


def read_transformers(source: Source, model_type: SourceFormat, heads: Heads) -> tuple[Layout, Found]:
    """The network of a folder whose ``config.json`` has this `model_type`, of `MODEL_TYPES`.

    Raises `WeightsRefused` for a network that is no plain Vision Transformer.
    """
    config = DEFAULTS | {key: value for key, value in (source.config or {}).items() if value is not None}
    found = _renamed(source)
    has_decoder = any(name.startswith("decoder.decoder_") for name in found.tensors)
    sizes = {
        "img_size": _sides(config, "image_size"),
        "patch_size": _patch(config),
        "in_chans": config["num_channels"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": heads.agreeing(config["num_attention_heads"]),
    }
    if has_decoder:
        sizes |= {
            "decoder_embed_dim": config["decoder_hidden_size"],
            "decoder_depth": config["decoder_num_hidden_layers"],
            "decoder_num_heads": heads.agreeing_decoder(config["decoder_num_attention_heads"]),
        }
    model = checked_model(sizes, CONFIG)
    _check_plain(config, model, has_decoder)
    layout = Layout(
        source_format=model_type,
        model=model,
        has_decoder=has_decoder,
        names=_names,
        norm_eps=_epsilon(config),
        left_out=LEFT_OUT,
    )
    return layout, found


def _names(name: str) -> tuple[str, ...]:
    return hf_mae_names(name) if is_decoder(name) else hf_names(name)


def _renamed(source: Source) -> Found:
    """The tensors under version 4's names, without the prefix that an encoder has within a larger network."""
    names: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in tensors_of(source).items():
        renamed = name.removeprefix(MAE_ENCODER)
        for pattern, replacement in _VERSION_5:
            renamed = re.sub(pattern, replacement, renamed)
        if renamed in tensors:
            raise WeightsRefused(
                f"{source.file_of[name]}: {name} and {names[renamed]} are the same tensor: keep one of the two"
            )
        tensors[renamed], names[renamed] = value, name
    return Found(tensors, lambda name: source.label(names.get(name, name)))


def _check_plain(config: Mapping[str, Any], model: ModelSpec, has_decoder: bool) -> None:
    """Raise `WeightsRefused` for what `MaskedAutoencoder` cannot compute."""
    if config["hidden_act"] != "gelu":
        raise WeightsRefused(f"{CONFIG}: hidden_act {config['hidden_act']!r}: only networks with gelu can be imported")
    if not config["qkv_bias"]:
        raise WeightsRefused(f"{CONFIG}: qkv_bias false: only networks with biases in attention can be imported")
    widths = {"": model.embed_dim} | ({"decoder_": model.decoder_embed_dim} if has_decoder else {})
    for part, width in widths.items():
        inner = config[f"{part}intermediate_size"]
        if inner != MLP_RATIO * width:
            raise WeightsRefused(
                f"{CONFIG}: {part}intermediate_size {inner} is not {MLP_RATIO} times {part}hidden_size {width}: only "
                "such networks can be imported"
            )


def _sides(config: Mapping[str, Any], field: str) -> Any:
    value = config[field]
    if isinstance(value, list) and len(value) == 2:
        return value[0] if value[0] == value[1] else tuple(value)
    return value


def _patch(config: Mapping[str, Any]) -> Any:
    side = _sides(config, "patch_size")
    if isinstance(side, tuple):
        raise WeightsRefused(f"{CONFIG}: patch_size {config['patch_size']}: only square patches can be imported")
    return side


def _epsilon(config: Mapping[str, Any]) -> float:
    value = config["layer_norm_eps"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise WeightsRefused(f"{CONFIG}: layer_norm_eps {value!r} must be a small number, such as 1e-6")
    return float(value)

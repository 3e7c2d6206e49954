"""Folders that transformers loads: `ViTModel`, `ViTMAEForPreTraining` with the decoder, and a classifier.

Keys are those of transformers 4, which load exactly in 4 and 5 alike; the folders are written without transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from trainer.data.preprocessing import EIGHT_BITS, processor_settings
from trainer.models.vit import MLP_RATIO, NORM_EPS
from trainer.protocol.tensor_names import hf_classifier_names, hf_mae_names, hf_names, is_decoder
from trainer.spec.pretrain import ModelSpec


class Masking(Protocol):
    """How a decoder was trained; a pretraining spec's `method` is one."""

    @property
    def mask_ratio(self) -> float:
        """Share of the patches hidden from the encoder."""

    @property
    def norm_pix_loss(self) -> bool:
        """Whether it predicts pixels normalised by each patch's own mean and deviation."""


def export_vit(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    value_range: tuple[float, float] = EIGHT_BITS,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` into the new folder ``out``.

    ``weights`` is a `MaskedAutoencoder`'s state; only the encoder's tensors are written, with unchanged values.
    """
    encoder = {name: value for name, value in weights.items() if not is_decoder(name)}
    _write(out, encoder, hf_names, _config(model) | {"architectures": ["ViTModel"], "model_type": "vit"})
    _write_json(out / "preprocessor_config.json", preprocessor(model, mean, std, value_range))


def export_vit_mae(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    masking: Masking,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    value_range: tuple[float, float] = EIGHT_BITS,
) -> None:
    """Like `export_vit`, with the decoder, for further pretraining and reconstructions; images must be square."""
    config = _config(model) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": model.decoder_embed_dim,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_num_heads,
        "decoder_intermediate_size": MLP_RATIO * model.decoder_embed_dim,
        "mask_ratio": masking.mask_ratio,
        "norm_pix_loss": masking.norm_pix_loss,
    }
    _write(out, weights, hf_mae_names, config)
    _write_json(out / "preprocessor_config.json", preprocessor(model, mean, std, value_range))


def export_vit_classifier(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    classes: Sequence[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    value_range: tuple[float, float] = EIGHT_BITS,
) -> None:
    """Like `export_vit`, for `ViTForImageClassification`, whose classifier reads the class token after the final norm.

    ``weights`` are those of `classifier_weights`, ``classes`` the names in the order of the logits.
    """
    config = _config(model) | {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "problem_type": "single_label_classification",
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
    }
    _write(out, weights, hf_classifier_names, config)
    _write_json(out / "preprocessor_config.json", preprocessor(model, mean, std, value_range))


def preprocessor(
    model: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    value_range: tuple[float, float] = EIGHT_BITS,
) -> dict[str, Any]:
    """How pixels become the network's input, in the form of transformers' BitImageProcessor."""
    return processor_settings(model.in_chans, (model.height, model.width), mean, std, value_range)


def _write(
    out: Path, weights: Mapping[str, Tensor], names: Callable[[str], tuple[str, ...]], config: dict[str, Any]
) -> None:
    """Write each tensor under its Hugging Face names; the joint projection becomes query, key and value."""
    out.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        keys = names(name)
        tensors |= {key: part.contiguous() for key, part in zip(keys, value.chunk(len(keys)), strict=True)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", config)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _config(model: ModelSpec) -> dict[str, Any]:
    """The fields that all formats share."""
    return {
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

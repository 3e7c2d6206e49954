"""A network as a folder that `timm.create_model("local-dir:…", pretrained=True)` loads; written without timm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from trainer.data.preprocessing import EIGHT_BITS, timm_settings
from trainer.models.vit import MLP_RATIO
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.pretrain import ModelSpec

ADAPTED_CHANNELS = (1, 3)
"""For these channels timm can adapt the first layer to another number of channels, by summing or repeating. For others
some of its versions would initialise the layer at random, so it is not told where the layer is."""

POOLING = "avg"
"""A pooled output is the mean of the patch tokens, which probes and the card's figures are about. timm would then move
the final norm behind the pooling, and call it otherwise; ``fc_norm=False`` keeps it where it was in training. A
classifier on the mean was trained with a norm there, and has none before."""
CLASS_TOKEN = "token"  # noqa: S105 - no password
"""The class token, of a classifier that reads that."""


@dataclass(frozen=True)
class Head:
    """What makes a backbone a classifier."""

    classes: tuple[str, ...]
    """Their names, in the order of the logits."""
    pooling: Literal["mean", "cls"]
    """What the head sees: the mean of the patch tokens, under a norm of its own, or the class token after the final
    norm."""


def export_timm(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    license_id: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    value_range: tuple[float, float] = EIGHT_BITS,
    head: Head | None = None,
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into the new folder ``out``.

    ``weights`` is a `MaskedAutoencoder`'s state; the encoder's tensors are written under their own names, which are
    timm's. With a ``head`` it is that of a classifier, as `classifier_weights` gives it. ``provenance`` goes into a
    field that timm ignores, and so does ``value_range``: the pixel values that were black and white in training, which
    become 0 and 1 before ``mean`` and ``std`` apply.
    """
    out.mkdir(parents=True)
    tensors = {name: value.contiguous() for name, value in weights.items() if not is_decoder(name)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = _config(model, mean, std, license_id, head) | {
        "rcmae": dict(provenance or {}) | {"value_range": list(value_range)}
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _config(
    model: ModelSpec, mean: tuple[float, ...], std: tuple[float, ...], license_id: str | None, head: Head | None
) -> dict[str, Any]:
    classes = len(head.classes) if head else 0
    pooling = CLASS_TOKEN if head and head.pooling == "cls" else POOLING
    return {
        "architecture": model.preset,  # any architecture of the family would do: the arguments below define the network
        "num_classes": classes,
        **({"label_names": list(head.classes)} if head else {}),
        "num_features": model.embed_dim,
        "global_pool": pooling,
        "model_args": {
            "img_size": [model.height, model.width],
            "patch_size": model.patch_size,
            "in_chans": model.in_chans,
            "embed_dim": model.embed_dim,
            "depth": model.depth,
            "num_heads": model.num_heads,
            "mlp_ratio": MLP_RATIO,
            "class_token": True,
            "global_pool": pooling,
            "fc_norm": head is not None and head.pooling == "mean",
        },
        "pretrained_cfg": {
            "tag": "rcmae",
            "custom_load": False,
            "input_size": [model.in_chans, model.height, model.width],
            "fixed_input_size": True,
            **timm_settings((model.height, model.width)),
            "mean": list(mean),
            "std": list(std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj" if model.in_chans in ADAPTED_CHANNELS else None,
            "classifier": "head",
            "license": license_id,
        },
    }

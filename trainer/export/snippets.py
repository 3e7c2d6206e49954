"""Code for the model card that loads a backbone with each tool. Each snippet is complete and runs as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trainer.models.vit import NORM_EPS
from trainer.spec.formats import (
    BACKBONE_HF,
    BACKBONE_HF_MAE,
    BACKBONE_ONNX,
    BACKBONE_TIMM,
    BACKBONE_TORCH_EXPORT,
    HUB_ORGANISATION,
)
from trainer.spec.pretrain import ModelSpec


@dataclass(frozen=True)
class Subject:
    """The backbone that the code loads."""

    name: str
    formats: tuple[str, ...]
    model: ModelSpec
    mask_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pixels(self) -> str:
        """Code that makes a normalised input."""
        model, mean, std = self.model, list(self.mean), list(self.std)
        return (
            f"images = torch.rand(2, {model.in_chans}, {model.height}, {model.width})  # yours, scaled to 0..1\n"
            f"mean, std = torch.tensor({mean}), torch.tensor({std})\n"
            "pixels = (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)"
        )

    @property
    def shape(self) -> str:
        """The shape of the tokens, as a comment."""
        return f"(2, {1 + self.model.patches}, {self.model.embed_dim}): class token first, then patch by patch"


@dataclass(frozen=True)
class Snippet:
    """One tool's section."""

    title: str
    text: str
    code: str
    """Python that leaves the tokens in ``features``."""


def snippets(subject: Subject) -> Iterator[Snippet]:
    """Sections for the formats that a backbone has, and for MLflow."""
    for form, title, text, code in _TOOLS:
        if form is None or form in subject.formats:
            yield Snippet(title, text, code(subject).strip("\n"))


def _transformers(subject: Subject) -> str:
    return f"""
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{HUB_ORGANISATION}/{subject.name}", add_pooling_layer=False).eval()
{subject.pixels}
with torch.inference_mode():
    features = model(pixels).last_hidden_state  # {subject.shape}
"""


def _timm(subject: Subject) -> str:
    return f"""
import timm
import torch

model = timm.create_model("hf-hub:{HUB_ORGANISATION}/{subject.name}-timm", pretrained=True).eval()
{subject.pixels}
with torch.inference_mode():
    features = model.forward_features(pixels)  # {subject.shape}
"""


def _mlflow(subject: Subject) -> str:
    """Downloads the version; loads it with transformers if it has that format."""
    uri = f"models:/{subject.name}"
    if BACKBONE_HF not in subject.formats:
        return f"""
import mlflow

folder = mlflow.artifacts.download_artifacts("{uri}/latest")  # or {uri}@champion
"""
    return f"""
import mlflow
import torch
from transformers import ViTModel

folder = mlflow.artifacts.download_artifacts("{uri}/latest")  # or {uri}@champion
model = ViTModel.from_pretrained(f"{{folder}}/{BACKBONE_HF}", add_pooling_layer=False).eval()
{subject.pixels}
with torch.inference_mode():
    features = model(pixels).last_hidden_state  # {subject.shape}
"""


def _torch(subject: Subject) -> str:
    model = subject.model
    return f"""
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

weights = load_file("{subject.name}-timm/model.safetensors")
{subject.pixels}


def linear(x, layer):
    return F.linear(x, weights[f"{{layer}}.weight"], weights[f"{{layer}}.bias"])


def norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], weights[f"{{layer}}.weight"], weights[f"{{layer}}.bias"], {NORM_EPS})


def attention(x, layer):
    query, key, value = linear(x, f"{{layer}}.qkv").unflatten(2, (3, {model.num_heads}, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return linear(mixed.transpose(1, 2).flatten(2), f"{{layer}}.proj")


with torch.inference_mode():
    patches = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = F.conv2d(pixels, *patches, stride={model.patch_size}).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["pos_embed"]
    for block in (f"blocks.{{i}}" for i in range({model.depth})):
        x = x + attention(norm(x, f"{{block}}.norm1"), f"{{block}}.attn")
        x = x + linear(F.gelu(linear(norm(x, f"{{block}}.norm2"), f"{{block}}.mlp.fc1")), f"{{block}}.mlp.fc2")
    features = norm(x, "norm")  # {subject.shape}
"""


def _reconstructions(subject: Subject) -> str:
    model = subject.model
    return f"""
import torch
from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("{HUB_ORGANISATION}/{subject.name}-mae").eval()
{subject.pixels}
with torch.inference_mode():
    answer = model(pixels)  # masks {subject.mask_ratio:.0%} of the patches at random, in evaluation mode too
    predicted, masked = answer.logits, answer.mask  # (2, {model.patches}, {model.patch_values}); 1 where masked
"""


def _onnx(subject: Subject) -> str:
    return f"""
import onnxruntime
import torch

session = onnxruntime.InferenceSession("{subject.name}-onnx/model.onnx")
{subject.pixels}
(features,) = session.run(None, {{"pixel_values": pixels.numpy()}})  # {subject.shape}
"""


def _torch_export(subject: Subject) -> str:
    return f"""
import torch

model = torch.export.load("{subject.name}-torch_export/model.pt2").module()
{subject.pixels}
with torch.inference_mode():
    features = model(pixels)  # {subject.shape}
"""


_TOOLS: Final[tuple[tuple[str | None, str, str, Callable[[Subject], str]], ...]] = (
    (BACKBONE_HF, "transformers", "Version 4 or 5.", _transformers),
    (
        BACKBONE_TIMM,
        "timm",
        "1.0.16 or later; for a pulled folder write `local-dir:` and its path. `pretrained=True` loads the weights.",
        _timm,
    ),
    (
        None,
        "MLflow",
        "Where MLflow can be reached; set `MLFLOW_TRACKING_URI`, and `_USERNAME` and `_PASSWORD` if it asks.",
        _mlflow,
    ),
    (BACKBONE_TIMM, "torch", "With only torch and safetensors, from a pulled folder of the format `timm`.", _torch),
    (
        BACKBONE_HF_MAE,
        "Reconstructions and further pretraining",
        "With the decoder, in transformers.",
        _reconstructions,
    ),
    (BACKBONE_ONNX, "ONNX Runtime", "From a pulled folder; any number of images at once.", _onnx),
    (BACKBONE_TORCH_EXPORT, "torch.export", "From a pulled folder; any number of images at once.", _torch_export),
)
"""The format that it needs (None for any), title, a sentence, and the function that writes the code."""

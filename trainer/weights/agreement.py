"""Whether converted weights compute what their source computes: a forward pass of the source's own tensors, written
apart from the network's and in float64.

Shapes: B images, C channels, p side of a patch, L patches of V values, v visible, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.models.pixels import patchify, unpatchify
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.models.vit import NORM_EPS
from trainer.spec.pretrain import ModelSpec
from trainer.weights.foreign import ForeignNetwork, ForeignWeights
from trainer.weights.layout import Found, State

TOLERANCE: Final = 1e-4
"""Greatest deviation from the source's arithmetic with our epsilon. float32 leaves some 1e-6; exchanged rows, columns
or patches leave 0.01 and more."""
EPSILON_TOLERANCE: Final = 1e-2
"""Greatest deviation if the source's LayerNorms have another epsilon than ours: a hundredth of the features' size."""
MASK_RATIO: Final = 0.75


def check_forward(weights: ForeignWeights) -> float:
    """The greatest deviation of our network from the source's own arithmetic, in units of its output's size.

    Tokens of whole images are compared, and with a decoder the pixels that it predicts for masked patches. Raises
    `WeightsRefused` if they do not agree.
    """
    deviations = []
    for original in weights.originals:
        ours = as_network(weights.model, original.state)
        same = _deviation(ours, original, weights, NORM_EPS)
        if not same <= TOLERANCE:
            raise WeightsRefused(
                f"the converted network deviates from its source by {same:.1e} of its output's size, and at most "
                f"{TOLERANCE:g} is rounding: the weights are not those of a plain {weights.source_format} network"
            )
        own = same if weights.norm_eps == NORM_EPS else _deviation(ours, original, weights, weights.norm_eps)
        if not own <= EPSILON_TOLERANCE:
            raise WeightsRefused(
                f"with the source's layer_norm_eps {weights.norm_eps:g} its output deviates by {own:.1e} of its size "
                f"from that with {NORM_EPS:g}, which every exported format has, and at most {EPSILON_TOLERANCE:g} is "
                "accepted: a network that nobody has trained has features too small for this check"
            )
        deviations.append(own)
    return max(deviations)


def as_network(model: ModelSpec, state: State) -> MaskedAutoencoder:
    """The network with this state, in evaluation mode; a decoder that the state lacks is newly initialised."""
    network = MaskedAutoencoder(model).eval().requires_grad_(False)
    network.load_state_dict(network.state_dict() | state, assign=True)
    return network.requires_grad_(False)


def _deviation(ours: MaskedAutoencoder, original: ForeignNetwork, weights: ForeignWeights, eps: float) -> float:
    reference = _Reference(original.found, weights, eps)
    images = _images(weights.model)
    with torch.no_grad():
        deviation = _relative(ours.encode(images), reference.encode(images.double()))
        if weights.has_decoder:
            order = _order(len(images), weights.model.patches)
            pictures = _relative(_predicted(ours, images, order, weights.model), reference.predict(images, order))
            deviation = torch.tensor([deviation, pictures], dtype=torch.float64).max().item()  # NaN if either is NaN
    return deviation


def _relative(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference, in units of the reference's root mean square."""
    return float((ours.double() - theirs).abs().max() / theirs.square().mean().sqrt().clamp(min=1e-12))


def _images(model: ModelSpec) -> Tensor:
    """Normalised images (3, C, H, W): noise, a ramp that differs by row, column and channel, and half of each."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, model.in_chans, model.height, model.width, generator=generator)
    rows = torch.linspace(-2, 1, model.height)[:, None]
    columns = torch.linspace(-0.5, 1.5, model.width)
    channels = torch.arange(1.0, model.in_chans + 1).view(-1, 1, 1) / model.in_chans
    ramp = (rows + columns) * channels
    half = torch.where(columns > 0.5, noise[1], ramp)
    return torch.stack([noise[0], ramp, half])


def _order(images: int, patches: int) -> Tensor:
    return torch.rand(images, patches, generator=torch.Generator().manual_seed(1)).argsort(dim=1)


def _visible(patches: int) -> int:
    return int(patches * (1 - MASK_RATIO))


def _predicted(ours: MaskedAutoencoder, images: Tensor, order: Tensor, model: ModelSpec) -> Tensor:
    """Our predictions as pictures (B, C, H, W), black where patches are visible."""
    patches, visible = patchify(images, model.patch_size), _visible(model.patches)
    index = order[:, :, None].expand_as(patches)
    masked = ours(patches.gather(1, index[:, :visible]), order)
    blank = torch.zeros_like(patches).scatter(1, index[:, visible:], masked)
    return unpatchify(blank, model.patch_size, model.grid, model.in_chans)


class _Reference:
    """The forward pass of a source, by its own names."""

    def __init__(self, found: Found, weights: ForeignWeights, eps: float) -> None:
        self.tensors, self.model, self.eps = found.tensors, weights.model, eps
        self.split = weights.source_format in ("vit", "vit_mae")
        """Whether query, key and value are apart, as in transformers."""

    def encode(self, images: Tensor, order: Tensor | None = None) -> Tensor:
        """Tokens (B, 1+L, D) of images (B, C, H, W); with an order, of its first patches alone (B, 1+v, D)."""
        names = _TRANSFORMERS if self.split else _TIMM
        weight, bias = self._layer(names["patch"])
        tokens = F.conv2d(images.double(), weight, bias, stride=self.model.patch_size).flatten(2).transpose(1, 2)
        positions = self._tensor(names["positions"])
        tokens = tokens + positions[:, 1:]
        if order is not None:
            kept = order[:, : _visible(self.model.patches)]
            tokens = torch.stack([rows[chosen] for rows, chosen in zip(tokens, kept, strict=True)])
        first = (self._tensor(names["class"]) + positions[:, :1]).expand(len(images), -1, -1)
        x = torch.cat([first, tokens], dim=1)
        for number in range(self.model.depth):
            x = self._block(x, names["block"].format(number), self.model.num_heads)
        return self._norm(x, names["norm"])

    def predict(self, images: Tensor, order: Tensor) -> Tensor:
        """The decoder's pictures (B, C, H, W), black where patches are visible, for one order of patches (B, L)."""
        model, prefix = self.model, "decoder." if self.split else ""
        visible = _visible(model.patches)
        x = F.linear(self.encode(images, order), *self._layer(f"{prefix}decoder_embed"))
        mask_token = self._tensor(f"{prefix}mask_token")
        every = mask_token.repeat(len(x), model.patches, 1)
        for row, (tokens, chosen) in enumerate(zip(x, order, strict=True)):
            every[row, chosen[:visible]] = tokens[1:]
        x = torch.cat([x[:, :1], every], dim=1) + self._tensor(f"{prefix}decoder_pos_embed")
        blocks = "decoder.decoder_layers.{}" if self.split else "decoder_blocks.{}"
        for number in range(model.decoder_depth):
            x = self._block(x, blocks.format(number), model.decoder_num_heads)
        values = F.linear(self._norm(x, f"{prefix}decoder_norm"), *self._layer(f"{prefix}decoder_pred"))[:, 1:]
        for row, chosen in enumerate(order):
            values[row, chosen[:visible]] = 0
        rows, columns = model.grid
        p = model.patch_size
        pixels = values.reshape(len(values), rows, columns, p, p, model.in_chans)
        return torch.einsum("byxijc->bcyixj", pixels).reshape(len(values), model.in_chans, rows * p, columns * p)

    def _block(self, x: Tensor, block: str, heads: int) -> Tensor:
        """One pre-norm Transformer block, (B, N, D) to (B, N, D)."""
        names = _TRANSFORMERS_BLOCK if self.split else _TIMM_BLOCK
        y = self._norm(x, f"{block}.{names['norm1']}")
        query, key, value = (
            F.linear(y, weight, bias).unflatten(2, (heads, -1)).transpose(1, 2)
            for weight, bias in self._query_key_value(block)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
        mixed = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(dim=-1), value).flatten(2)
        x = x + F.linear(mixed, *self._layer(f"{block}.{names['out']}"))
        inner = F.gelu(F.linear(self._norm(x, f"{block}.{names['norm2']}"), *self._layer(f"{block}.{names['fc1']}")))
        return x + F.linear(inner, *self._layer(f"{block}.{names['fc2']}"))

    def _query_key_value(self, block: str) -> list[tuple[Tensor, Tensor]]:
        if self.split:
            return [self._layer(f"{block}.attention.attention.{part}") for part in ("query", "key", "value")]
        weight, bias = self._layer(f"{block}.attn.qkv")
        width = len(bias) // 3
        return [(weight[i * width : (i + 1) * width], bias[i * width : (i + 1) * width]) for i in range(3)]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """A LayerNorm, spelled out."""
        weight, bias = self._layer(name)
        centred = x - x.mean(dim=-1, keepdim=True)
        out: Tensor = centred / (centred.square().mean(dim=-1, keepdim=True) + self.eps).sqrt() * weight + bias
        return out

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias")

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[name].detach().double()


_TIMM: Final[Mapping[str, str]] = {
    "patch": "patch_embed.proj", "positions": "pos_embed", "class": "cls_token", "block": "blocks.{}", "norm": "norm",
}  # fmt: skip
_TIMM_BLOCK: Final[Mapping[str, str]] = {
    "norm1": "norm1", "norm2": "norm2", "out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
_TRANSFORMERS: Final[Mapping[str, str]] = {
    "patch": "embeddings.patch_embeddings.projection", "positions": "embeddings.position_embeddings",
    "class": "embeddings.cls_token", "block": "encoder.layer.{}", "norm": "layernorm",
}  # fmt: skip
_TRANSFORMERS_BLOCK: Final[Mapping[str, str]] = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "out": "attention.output.dense",
    "fc1": "intermediate.dense", "fc2": "output.dense",
}  # fmt: skip

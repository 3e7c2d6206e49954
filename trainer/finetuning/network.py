"""An encoder with a head that classifies images: the whole of it trains, or the head alone.

Shapes: B images, C channels, H x W pixels, L patches, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.evaluation.features import pooled
from trainer.models.encoder import Encoder
from trainer.models.vit import NORM_EPS
from trainer.spec.evaluate import Pooling
from trainer.spec.finetuning import AttentiveSettings, FinetuneSettings, PaperLinearSettings
from trainer.spec.pretrain import ModelSpec

Settings = FinetuneSettings | PaperLinearSettings | AttentiveSettings

FINETUNE_STD, LINEAR_STD, QUERY_STD = 2e-5, 0.01, 0.02
"""Deviations of initial weights: the paper's for fine-tuning and its linear classifier, and an attentive query's."""
STANDARDISED_EPS, RUNNING = 1e-6, 0.1
"""What the paper's BatchNorm adds to a variance, and the share of a batch in its running statistics."""


class Classifier(nn.Module):
    """An encoder and a head. Images are normalised."""

    encoder: Encoder
    head: nn.Module

    @property
    def trained(self) -> nn.Module:
        """The module that trains: it takes what `inputs` gives."""
        raise NotImplementedError

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the trained module sees of images (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.trained(self.inputs(pixels))
        return logits


class FineTuned(Classifier):
    """Everything trains, the position embeddings too.

    The head sees the mean patch token under a norm of its own, or the class token under the encoder's.
    """

    def __init__(self, encoder: Encoder, classes: int, pooling: str) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        positions = encoder.pos_embed
        del encoder.pos_embed  # fixed in pretraining
        encoder.pos_embed = nn.Parameter(positions)
        width = positions.shape[-1]
        if pooling == "mean":
            encoder.norm.requires_grad_(False)  # it is not used
            self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = _linear(width, classes, FINETUNE_STD)

    @property
    def trained(self) -> nn.Module:
        return self

    def inputs(self, pixels: Tensor) -> Tensor:
        return pixels

    def forward(self, pixels: Tensor, branches: Tensor | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W); ``branches`` (B, depth, 2) as in `Encoder.states`."""
        *_, tokens = self.encoder.states(pixels, branches)
        own = self.norm(tokens[:, 1:].mean(dim=1)) if self.pooling == "mean" else self.encoder.norm(tokens)[:, 0]
        logits: Tensor = self.head(own)
        return logits


class Frozen(Classifier):
    """The encoder stays as it is, and a head trains on its features: pooled, or all patch tokens if pooling is None."""

    def __init__(self, encoder: Encoder, head: LinearHead | AttentiveHead, pooling: Pooling | None) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = encoder.requires_grad_(False), head, pooling

    @property
    def trained(self) -> nn.Module:
        return self.head

    @torch.no_grad()
    def inputs(self, pixels: Tensor) -> Tensor:
        """Features (B, D), as `pooled` gives them, or patch tokens (B, L, D) after the final norm."""
        if self.pooling is None:
            return self.encoder.encode(pixels)[:, 1:].float()
        return pooled(self.encoder, pixels, self.pooling, [self.encoder.depth])[0]


class LinearHead(nn.Module):
    """Features standardised over a global batch, then linear: BatchNorm without scale and shift, over all ranks.

    The features carry no gradient, so the batch's statistics are constants.
    """

    batch_mean: Tensor
    batch_variance: Tensor
    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("variance", 1.0)):
            self.register_buffer(f"batch_{name}", torch.full((width,), value), persistent=False)
            self.register_buffer(f"running_{name}", torch.full((width,), value))
        self.linear = _linear(width, classes, LINEAR_STD)

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take the statistics of a global batch, of which this rank has the features (B, D). Every rank calls this."""
        wide = features.double()
        count = _over_ranks(torch.tensor(float(len(wide)), dtype=torch.float64, device=wide.device))
        mean = _over_ranks(wide.sum(dim=0)) / count
        squares = _over_ranks((wide - mean).square().sum(dim=0))
        self.batch_mean.copy_(mean)
        self.batch_variance.copy_(squares / count)
        self.running_mean.lerp_(mean.float(), RUNNING)
        self.running_variance.lerp_((squares / (count - 1).clamp(min=1)).float(), RUNNING)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D), by the batch's statistics in training and by the running ones otherwise."""
        mean, variance = (
            (self.batch_mean, self.batch_variance) if self.training else (self.running_mean, self.running_variance)
        )
        logits: Tensor = self.linear((features - mean) / (variance + STANDARDISED_EPS).sqrt())
        return logits


class AttentiveHead(nn.Module):
    """A learned query attends over patch tokens, and a linear layer sees what it gathers."""

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.kv = nn.Linear(width, 2 * width)
        self.linear = _linear(width, classes, LINEAR_STD)
        nn.init.trunc_normal_(self.query, std=QUERY_STD)
        nn.init.xavier_uniform_(self.kv.weight)
        nn.init.zeros_(self.kv.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, K) of patch tokens (B, L, D)."""
        b, n, d = tokens.shape
        bias = torch.cat([self.kv.bias[:d].detach(), self.kv.bias[d:]])  # softmax cancels the keys' bias
        joint = F.linear(self.norm(tokens), self.kv.weight, bias)
        keys, values = joint.view(b, n, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        query = self.query.to(keys.dtype).view(1, self.heads, 1, d // self.heads).expand(b, -1, -1, -1)
        gathered = F.scaled_dot_product_attention(query, keys, values)
        logits: Tensor = self.linear(gathered.transpose(1, 2).reshape(b, d))
        return logits


def make_classifier(
    settings: Settings, model: ModelSpec, weights: Mapping[str, Tensor] | None, classes: int, seed: int
) -> Classifier:
    """A classifier with an encoder's weights, or with random ones drawn from the seed like the head's.

    ``settings`` are resolved. ``weights`` may have tensors of a decoder too, which are left out; raises `KeyError` if
    one of the encoder's is missing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(model)
        if weights is not None:
            encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        if isinstance(settings, FinetuneSettings):
            return FineTuned(encoder, classes, settings.pooling)
        if isinstance(settings, AttentiveSettings):
            return Frozen(encoder, AttentiveHead(model.embed_dim, int(settings.heads), classes), None)
        return Frozen(encoder, LinearHead(model.embed_dim, classes), settings.pooling)


def _linear(width: int, classes: int, std: float) -> nn.Linear:
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear


def _over_ranks(own: Tensor) -> Tensor:
    """The sum of every rank's tensor, which may overwrite this rank's."""
    if dist.is_initialized():
        dist.all_reduce(own)
    return own

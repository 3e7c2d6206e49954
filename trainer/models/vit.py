"""Building blocks of a plain Vision Transformer (arXiv 2010.11929), with the parameter names timm uses.

Shapes: B images, C channels, p side of a patch, L patches of an image, V = p*p*C values of a patch, N tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
MLP_RATIO = 4
SHORT_SEQUENCE = 256
"""Tokens up to which two batched matrix products are faster than the fused attention kernel on a CPU: up to twice in
fp32 and four times in bf16. The attention scores of longer sequences no longer fit in the cache."""


def position_embedding(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed two-dimensional sine-cosine embedding (1, 1+L, D) of a patch grid; the class token's row is zero.

    The first half of D encodes the column, the second the row; within a half sines come before cosines, with
    frequencies ``10000 ** (-4i/D)`` (arXiv 2111.06377).
    """
    rows, columns = grid
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    angles = torch.stack([column, row])[:, :, None] * frequency  # (2, L, D/4)
    halves = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (2, L, D/2)
    patches = torch.cat([halves[0], halves[1]], dim=-1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), patches])[None].float()


class PatchEmbed(nn.Module):
    """Linear map of flattened patches. Its weights are those of the equivalent convolution, as in other libraries."""

    value_order: Tensor

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        # A patch's values are ordered by row, column, channel; the convolution's by channel, row, column. Selecting
        # columns instead of permuting leaves the gradient contiguous, as DDP's buckets need it.
        order = torch.arange(channels * patch * patch).view(channels, patch, patch).permute(1, 2, 0).flatten()
        self.register_buffer("value_order", order, persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (B, M, V) to tokens (B, M, D)."""
        weight = self.proj.weight.flatten(1).index_select(1, self.value_order)  # (D, V) in the order of `patchify`
        return F.linear(patches, weight, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(B, N, D) to (B, N - first, D): the tokens from ``first`` on, each attending to all."""
        b, n, d = x.shape
        split = self._split(x)
        if x.device.type == "cpu" and n <= SHORT_SEQUENCE:
            query, key, value = split.contiguous()
            scores = (query[:, :, first:] * (d // self.heads) ** -0.5) @ key.transpose(-2, -1)
            mixed = scores.softmax(dim=-1) @ value
        else:
            query, key, value = split
            mixed = F.scaled_dot_product_attention(query[:, :, first:], key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n - first, d))
        return out

    def class_weights(self, x: Tensor) -> Tensor:
        """How much the first token of x (B, N, D) attends to each token: softmax weights (B, heads, N), in fp32."""
        query, key, _ = self._split(x)
        scores: Tensor = (query[:, :, :1] * key.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.squeeze(2).float().softmax(dim=-1)

    def _split(self, x: Tensor) -> Tensor:
        """Queries, keys and values (3, B, heads, N, D / heads) of x (B, N, D)."""
        b, n, d = x.shape
        queries, keys, values = self.qkv.bias.chunk(3)
        # The key's bias adds the same value to all scores of a query, which softmax cancels: its gradient is zero
        # except for rounding errors, which Adam would scale up into steps. Detached, the bias stays as it is.
        joint = F.linear(x, self.qkv.weight, torch.cat([queries, keys.detach(), values]))
        return joint.view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm Transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, first: int = 0, branches: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N - first, D): the tokens from ``first`` on, having seen all.

        ``branches`` (B, 2) are factors of each image's two residual branches, which dropped paths set to 0; None: 1.
        """
        if branches is None:
            x = x[:, first:] + self.attn(self.norm1(x), first)
            out: Tensor = x + self.mlp(self.norm2(x))
            return out
        attention, mlp = branches.to(x.dtype)[:, :, None, None].unbind(1)
        x = x[:, first:] + attention * self.attn(self.norm1(x), first)
        scaled: Tensor = mlp * self.mlp(self.norm2(x))
        return x + scaled

"""The encoder: a plain ViT over an image's patches (arXiv 2010.11929), with fixed positions and without a head.

Shapes: B images, C channels, H x W pixels, L patches of V = p*p*C values, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.pixels import patchify
from trainer.models.vit import NORM_EPS, Block, PatchEmbed, position_embedding
from trainer.spec.pretrain import ModelSpec


class Encoder(nn.Module):
    """The ViT of a backbone, with random weights. Its images are normalised."""

    cls_token: Tensor
    pos_embed: Tensor

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self._build(model)
        self._initialise()

    def _build(self, model: ModelSpec) -> None:
        """Make all modules; a subclass adds its own to them before any weight is drawn."""
        dim = model.embed_dim
        self.patch_size = model.patch_size
        self.patch_embed = PatchEmbed(model.patch_size, model.in_chans, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.register_buffer("pos_embed", position_embedding(model.grid, dim))
        self.blocks = nn.ModuleList(Block(dim, model.num_heads) for _ in range(model.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (B, 1+L, D) of whole images (B, C, H, W), class token first, after the final norm."""
        return self._encode(patchify(images, self.patch_size), self._all_positions(images))

    def layers(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Tokens (B, 1+L, D) after each of the ``wanted`` blocks, numbered from 1 to the depth.

        Each is under the final norm, as in DINO's evaluation (arXiv 2104.14294); the last block's equal `encode`'s.
        """
        unknown = [number for number in wanted if not 1 <= number <= self.depth]
        if unknown:
            raise ValueError(f"there is no block {unknown[0]}: the blocks are 1 to {self.depth}")
        tokens = {number: self.norm(x) for number, x in enumerate(self.states(images)) if number in wanted}
        return [tokens[number] for number in wanted]

    def attention(self, images: Tensor) -> Tensor:
        """The class token's attention in the last block, (B, heads, 1+L): softmax weights over all tokens."""
        before_last = next(itertools.islice(self.states(images), self.depth - 1, None))
        return self.class_attention(before_last)

    def states(self, images: Tensor, branches: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens (B, 1+L, D) of images (B, C, H, W) before the first block, then after each; without the final norm.

        ``branches`` (B, depth, 2) are factors of the blocks' residual branches, as `Block` takes them; None: 1.
        """
        x = self._embed(patchify(images, self.patch_size), self._all_positions(images))
        yield x
        for number, block in enumerate(self.blocks):
            x = block(x, branches=None if branches is None else branches[:, number])
            yield x

    def class_attention(self, x: Tensor) -> Tensor:
        """The class token's attention (B, heads, 1+L) in the last block, which gets the tokens ``x`` (B, 1+L, D)."""
        last: Block = self.blocks[-1]  # type: ignore[assignment]  # torch types a list's items as any module
        return last.attn.class_weights(last.norm1(x))

    def _all_positions(self, images: Tensor) -> Tensor:
        return torch.arange(self.pos_embed.shape[1], device=images.device).expand(len(images), -1)

    def _encode(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, 1+v, D), after the final norm, of some patches (B, v, V); the class token's position is first."""
        x = self._embed(patches, positions)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def _embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        tokens = self.patch_embed(patches)
        # Flattened: the gradient of an expanded (1, 1, D) would come in strides that DDP's buckets have to copy.
        cls = self.cls_token.flatten().to(tokens.dtype).expand(len(tokens), 1, -1)
        return torch.cat([cls, tokens], dim=1) + F.embedding(positions, self.pos_embed[0])

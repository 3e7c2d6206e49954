"""The masked auto-encoder (arXiv 2111.06377), and RC-MAE's mean teacher and consistency loss (arXiv 2210.02077).

Shapes: B images, C channels, L patches of V = p*p*C values, v visible and M = L - v masked patches, D width.
An order (B, L) is a permutation of each image's patches: the first v are visible.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.encoder import Encoder
from trainer.models.vit import NORM_EPS, Block, position_embedding
from trainer.spec.pretrain import ModelSpec


class MaskedAutoencoder(Encoder):
    """ViT encoder over the visible patches and a light decoder that predicts the pixels of the masked ones.

    The decoder gets the tokens in the mask's order, not the image's: attention does not depend on the order of tokens,
    and each carries its position, so they need not be reordered.
    """

    mask_token: Tensor
    decoder_pos_embed: Tensor

    def _build(self, model: ModelSpec) -> None:
        super()._build(model)
        dim, width = model.embed_dim, model.decoder_embed_dim
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("decoder_pos_embed", position_embedding(model.grid, width))
        self.decoder_blocks = nn.ModuleList(Block(width, model.decoder_num_heads) for _ in range(model.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, model.patch_values)

    def _initialise(self) -> None:
        super()._initialise()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, orders: Tensor) -> Tensor:
        """Predicted pixels (B, M, V) of the masked patches ``orders[:, v:]``, from the visible ones (B, v, V)."""
        positions = F.pad(orders + 1, (1, 0))  # (B, 1+L): rows of the position embedding, the class token's first
        return self._decode(self._encode(patches, positions[:, : 1 + patches.shape[1]]), positions)

    def _decode(self, latent: Tensor, positions: Tensor) -> Tensor:
        x = self.decoder_embed(latent)
        visible = x.shape[1]
        masked = self.mask_token.flatten().to(x.dtype).expand(len(x), positions.shape[1] - visible, -1)
        x = torch.cat([x, masked], dim=1) + F.embedding(positions, self.decoder_pos_embed[0])
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        # Only masked patches are predicted, so the last block need not compute the other tokens.
        out: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks[-1](x, first=visible)))
        return out


def make_teacher(student: MaskedAutoencoder) -> MaskedAutoencoder:
    """An exact copy of the student, in evaluation mode and without gradients."""
    return copy.deepcopy(student).eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student`` over all parameters, in place."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the values of a patch, averaged over masked patches, in fp32; both (B, M, V)."""
    return F.mse_loss(prediction.float(), target.float())


def consistency_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the student's and the teacher's predictions (B, M, V); the teacher gets no gradient.

    Both are raw predictions, before any normalisation is undone (arXiv 2210.02077).
    """
    return reconstruction_loss(student, teacher.detach())

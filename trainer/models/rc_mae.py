"""Masked auto-encoder, and what RC-MAE adds: a mean teacher and the consistency loss (arXiv 2210.02077).

Shapes: B images, C channels, L patches of V = p*p*C values, v visible and M = L - v masked patches, D width.
An order (B, L) is a permutation of each image's patches: the first v are visible.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainer.models.vit import NORM_EPS, Block, PatchEmbed, patchify, position_embedding, take_patches
from trainer.spec.pretrain import ModelSpec

TARGET_EPS = 1e-6


class MaskedAutoencoder(nn.Module):
    """ViT encoder over the visible patches and a light decoder that predicts the pixels of the masked ones.

    The decoder sees the tokens in the order of the mask instead of the picture's: attention does not depend on the
    order of its tokens and each carries its position, so nothing has to be put back in place.
    """

    cls_token: Tensor
    mask_token: Tensor
    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.patch_size = model.patch_size
        dim, width = model.embed_dim, model.decoder_embed_dim

        self.patch_embed = PatchEmbed(model.patch_size, model.in_chans, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.register_buffer("pos_embed", position_embedding(model.grid, dim))
        self.blocks = nn.ModuleList(Block(dim, model.num_heads) for _ in range(model.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("decoder_pos_embed", position_embedding(model.grid, width))
        self.decoder_blocks = nn.ModuleList(Block(width, model.decoder_num_heads) for _ in range(model.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, model.patch_values)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, orders: Tensor, visible: int) -> Tensor:
        """Predicted pixels (B, M, V) of the masked patches ``orders[:, visible:]`` of images (B, C, H, W)."""
        latent = self._encode(take_patches(images, orders[:, :visible], self.patch_size), orders[:, :visible])
        return self._decode(latent, orders, visible)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (B, 1+L, D) of whole images (B, C, H, W), class token first, after the final norm."""
        every = torch.arange(self.pos_embed.shape[1] - 1, device=images.device).expand(len(images), -1)
        return self._encode(patchify(images, self.patch_size), every)

    def _encode(self, patches: Tensor, index: Tensor) -> Tensor:
        tokens = self.patch_embed(patches) + self.pos_embed[0, 1:][index]
        # Flattened: the gradient of an expanded (1, 1, D) would come in strides that DDP's buckets have to copy.
        cls = (self.cls_token.flatten() + self.pos_embed[0, 0]).expand(len(patches), 1, -1)
        x = torch.cat([cls.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def _decode(self, latent: Tensor, orders: Tensor, visible: int) -> Tensor:
        x = self.decoder_embed(latent)
        masked = self.mask_token.flatten().to(x.dtype).expand(len(x), orders.shape[1] - visible, -1)
        positions = self.decoder_pos_embed[0, 1:][orders]
        x = torch.cat(
            [x[:, :1] + self.decoder_pos_embed[:, :1], torch.cat([x[:, 1:], masked], dim=1) + positions], dim=1
        )
        for block in self.decoder_blocks:
            x = block(x)
        out: Tensor = self.decoder_pred(self.decoder_norm(x[:, 1 + visible :]))
        return out


def make_teacher(student: MaskedAutoencoder) -> MaskedAutoencoder:
    """An exact copy of the student, in evaluation mode and without gradients."""
    return copy.deepcopy(student).eval().requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student`` over all parameters, in place."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def gather_patches(patches: Tensor, index: Tensor) -> Tensor:
    """Chosen patches (B, M, V) of patches (B, L, V); ``index`` (B, M) int64."""
    return patches.gather(1, index[:, :, None].expand(-1, -1, patches.shape[2]))


def normalise(patches: Tensor) -> Tensor:
    """Each patch (..., V) with its own mean taken off, over its own (unbiased) deviation."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * torch.rsqrt(variance + TARGET_EPS)


def masked_targets(images: Tensor, orders: Tensor, visible: int, patch: int, norm_pix_loss: bool) -> Tensor:
    """What the decoder should predict (B, M, V) for the patches ``orders[:, visible:]`` of images (B, C, H, W)."""
    patches = take_patches(images, orders[:, visible:], patch)
    return normalise(patches) if norm_pix_loss else patches


def targets(images: Tensor, patch: int, norm_pix_loss: bool) -> Tensor:
    """What the decoder should predict (B, L, V) were every patch of images (B, C, H, W) masked."""
    patches = patchify(images, patch)
    return normalise(patches) if norm_pix_loss else patches


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the values of a patch, averaged over masked patches, in fp32; both (B, M, V)."""
    return (prediction.float() - target.float()).square().mean()


def consistency_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The same distance between the student's and the teacher's raw predictions (B, M, V); the teacher is fixed."""
    return reconstruction_loss(student, teacher.detach())

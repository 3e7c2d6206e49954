"""Images as patches, and the values networks see and predict.

Shapes: B images, C channels, H x W pixels, p side of a patch, L = (H/p)*(W/p) patches, V = p*p*C values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

TARGET_EPS = 1e-6
Channels = tuple[float, ...] | Tensor
"""A number for each channel."""


def normalised(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Images (B, C, H, W) uint8 as float32, normalised by each channel's mean and deviation (of values in 0..1)."""
    centre, spread = (torch.as_tensor(v, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return torch.addcmul(-centre / spread, images.float(), 1 / (255 * spread))  # one pass over the pixels


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) as patches (B, L, V) in rows; a patch's values are ordered by row, column, channel."""
    return _as_grid(images, patch).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int], channels: int) -> Tensor:
    """Patches (B, L, V) as images (B, C, H, W): the inverse of `patchify`."""
    rows, columns = grid
    x = patches.reshape(patches.shape[0], rows, columns, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], channels, rows * patch, columns * patch)


def take_patches(images: Tensor, index: Tensor, patch: int) -> Tensor:
    """The patches (B, M, V) with the numbers ``index`` (B, M) int64, in 0..L-1, of images (B, C, H, W).

    Reads no other patches.
    """
    grid = _as_grid(images, patch)
    columns = grid.shape[2]
    batch = torch.arange(len(images), device=images.device)[:, None]
    return grid[batch, index // columns, index % columns].flatten(2)


def _as_grid(images: Tensor, patch: int) -> Tensor:
    """A view of images (B, C, H, W) as (B, H/p, W/p, p, p, C)."""
    grid: Tensor = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
    return grid


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation (..., 1) of each patch (..., V); the deviation is above 0 for uniform patches too."""
    mean = patches.mean(dim=-1, keepdim=True)
    # Two passes with the vectorised norm are several times faster than var_mean, and as exact.
    squares = torch.linalg.vector_norm(patches - mean, dim=-1, keepdim=True).square()
    deviation: Tensor = (squares / (patches.shape[-1] - 1) + TARGET_EPS).sqrt()
    return mean, deviation


def targets(patches: Tensor, norm_pix_loss: bool) -> Tensor:
    """The decoder's targets for patches (..., V): their pixels, or their pixels normalised within each patch."""
    if not norm_pix_loss:
        return patches
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation

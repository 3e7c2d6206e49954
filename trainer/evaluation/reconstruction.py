"""How well masked patches are predicted, compared with predicting zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.evaluation.features import evaluating
from trainer.models.pixels import normalised, take_patches, targets
from trainer.models.rc_mae import MaskedAutoencoder


@torch.no_grad()
def reconstruction_ratio(
    model: MaskedAutoencoder,
    images: Tensor,
    orders: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    norm_pix_loss: bool,
    visible: int,
    batch_size: int,
) -> float:
    """Squared error of the model's prediction over that of predicting zeros, on the same masked patches.

    ``images`` (n, C, H, W) uint8, ``orders`` (n, L). Below 1, the model has learned something. Errors are summed in
    float64.
    """
    device = next(model.parameters()).device
    error = zero = 0.0
    with evaluating(model):
        for first in range(0, len(images), batch_size):
            pixels = normalised(images[first : first + batch_size].to(device), mean, std)
            order = orders[first : first + batch_size].to(device)
            patches = take_patches(pixels, order, model.patch_size)
            target = targets(patches[:, visible:], norm_pix_loss).double()
            prediction = model(patches[:, :visible], order).double()
            error += (prediction - target).square().sum().item()
            zero += target.square().sum().item()
    return error / zero if zero else 1.0

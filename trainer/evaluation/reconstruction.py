"""How well masked patches are predicted, compared with predicting zeros."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trainer.evaluation.features import evaluating
from trainer.models.pixels import normalised, take_patches, targets
from trainer.models.rc_mae import MaskedAutoencoder

Errors = tuple[float, float]
"""Squared errors of the prediction and of predicting zeros, summed in float64."""


@torch.no_grad()
def block_errors(
    model: MaskedAutoencoder,
    images: Tensor,
    orders: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    norm_pix_loss: bool,
    visible: int,
) -> Errors:
    """The errors on the masked patches of a block of images (n, C, H, W) uint8, whose ``orders`` are (n, L)."""
    device = next(model.parameters()).device
    order = orders.to(device)
    patches = take_patches(normalised(images.to(device), mean, std), order, model.patch_size)
    target = targets(patches[:, visible:], norm_pix_loss).double()
    with evaluating(model):
        prediction = model(patches[:, :visible], order).double()
    return (prediction - target).square().sum().item(), target.square().sum().item()


def reconstruction_ratio(blocks: Iterable[Errors]) -> float:
    """Squared error of the model's prediction over that of predicting zeros, on the same masked patches of all blocks.

    Below 1, the model has learned something. The errors are added up in the order of the blocks.
    """
    error = zero = 0.0
    for of_model, of_zeros in blocks:
        error, zero = error + of_model, zero + of_zeros
    return error / zero if zero else 1.0

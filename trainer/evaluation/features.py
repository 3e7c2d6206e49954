"""Features of whole images from a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.models.pixels import normalised
from trainer.models.rc_mae import MaskedAutoencoder


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards back into its previous mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def extract(
    model: MaskedAutoencoder, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int
) -> NDArray[np.float32]:
    """Mean of the patch tokens (n, D) of images (n, C, H, W) uint8; the class token is left out."""
    device = next(model.parameters()).device
    with evaluating(model):
        parts = [
            model.encode(normalised(images[first : first + batch_size].to(device), mean, std))[:, 1:]
            .float()
            .mean(dim=1)
            for first in range(0, len(images), batch_size)
        ]
    features: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return features

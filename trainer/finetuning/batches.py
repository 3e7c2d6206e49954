"""What the network sees of a batch: crops and flips from the loader, then the rest of the augmentation on the device.

Every draw is a function of (seed, epoch, sample), so that a resumed training and any number of workers see the same.
Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.images import Images
from trainer.data.loader import BatchPart, Preparation, PreparedPart, random_crops
from trainer.evaluation.features import View
from trainer.finetuning.mixing import draw_branches, draw_erasures, draw_mixture, erase, mix
from trainer.finetuning.network import Settings
from trainer.finetuning.randaugment import augment, draw_operations
from trainer.models.pixels import normalised
from trainer.spec.finetuning import FinetuneSettings


class LabelledPreparation(Preparation):
    """Prepares random crops (b, C, H, W) uint8 and their samples' ids (b,) int64: indices in ``rows`` of images."""

    def __init__(
        self, images: Images, rows: NDArray[np.int64], settings: Settings, size: tuple[int, int], seed: int
    ) -> None:
        self.images, self.rows, self.settings, self.size, self.seed = images, rows, settings, size, seed

    def prepare(self, part: BatchPart) -> PreparedPart:
        settings = self.settings
        crops = random_crops(self.images, self.rows, part, self.seed, settings.crop_scale, settings.hflip, self.size)
        return torch.from_numpy(crops), torch.from_numpy(part.samples)


@dataclass(frozen=True)
class Seen:
    """Images as the network sees them, and what it should say."""

    pixels: Tensor
    """(B, C, H, W) float32, normalised."""
    labels: Tensor
    """(B,) int64."""
    others: Tensor
    """(B,) int64, the labels of the images that these are mixed with."""
    share: Tensor
    """(B,) float32, the share of the image's own label in the target."""
    branches: Tensor | None
    """(B, depth, 2) factors of residual branches; None: no path is dropped."""


@dataclass(frozen=True)
class Augmentation:
    """From crops to what the network sees, as the settings say."""

    settings: Settings
    view: View
    seed: int
    labels: NDArray[np.int64]
    """(n,) of each sample."""
    depth: int
    """Blocks of the encoder."""

    def __call__(self, crops: Tensor, samples: NDArray[np.int64], epoch: int) -> Seen:
        """What the network sees of crops (B, C, H, W) uint8, on their device; the first is the first of a pair."""
        settings, device = self.settings, crops.device
        labels = torch.from_numpy(self.labels[samples]).to(device)
        if not isinstance(settings, FinetuneSettings):
            pixels = normalised(crops, self.view.mean, self.view.std)
            return Seen(pixels, labels, labels, torch.ones(len(labels), device=device), None)
        pixels = self._strongly_augmented(settings, crops, samples, epoch)
        mixture = draw_mixture(settings.mixup, settings.cutmix, self.seed, epoch, samples, self.view.size)
        if settings.mixup or settings.cutmix:
            pixels = mix(pixels, mixture)
        branches = draw_branches(float(settings.drop_path), self.depth, self.seed, epoch, samples)
        return Seen(
            pixels,
            labels,
            labels[torch.from_numpy(mixture.partner).to(device)],
            torch.from_numpy(mixture.share).to(device),
            torch.from_numpy(branches).to(device) if settings.drop_path else None,
        )

    def _strongly_augmented(
        self, settings: FinetuneSettings, crops: Tensor, samples: NDArray[np.int64], epoch: int
    ) -> Tensor:
        """Normalised images after RandAugment and erasing."""
        images = crops
        if settings.randaugment:
            draws = draw_operations(settings.randaugment, crops.shape[1], self.seed, epoch, samples)
            images = augment(crops.float() / 255, draws) * 255
        pixels = normalised(images, self.view.mean, self.view.std)
        if settings.erasing:
            pixels = erase(pixels, draw_erasures(settings.erasing, self.seed, epoch, samples, self.view.size))
        return pixels

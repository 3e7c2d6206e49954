"""Mixup, cutmix and erasing of images, and dropped paths: every draw is a function of (seed, epoch, sample).

The images 2k and 2k + 1 of each global batch are a pair, of which each is mixed with the other. An epoch's order is
random, so this pairs every image with a random one; a pair is never divided among ranks or parts of a batch.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.sampler import (
    DROP_PATH,
    ERASED,
    ERASED_AREA,
    ERASED_LEFT,
    ERASED_NOISE,
    ERASED_RATIO,
    ERASED_TOP,
    MIX_KIND,
    MIX_LEFT,
    MIX_SHARE,
    MIX_TOP,
    hash64,
    several,
    uniform,
)

ERASED_AREAS, ERASED_RATIOS, ERASING_TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10
"""Shares of an image's area and ratios of sides that a box of noise has, and how often it is drawn until one fits."""

Boxes = NDArray[np.int64]
"""(B, 4): left, top, right, bottom in pixels; empty where right is not beyond left."""


@dataclass(frozen=True)
class Mixture:
    """How each of B images is mixed with its partner."""

    partner: NDArray[np.int64]
    """(B,), the row of the other image of the pair."""
    share: NDArray[np.float32]
    """(B,), the share of the image itself in the mixture, and of its label in the target."""
    boxes: Boxes
    """Where cutmix pastes the partner; empty for mixup."""


def draw_mixture(
    mixup: float, cutmix: float, seed: int, epoch: int, samples: NDArray[np.int64], size: tuple[int, int]
) -> Mixture:
    """The draws of consecutive samples (B,) of a batch, whose first one is the first of a pair.

    A share comes from Beta(alpha, alpha); ``size`` is (h, w). With both alphas a pair draws one of the two kinds. The
    last of an odd number of images stays as it is.
    """
    count, (height, width) = len(samples), size
    places = np.arange(count)
    partner = np.minimum(places ^ 1, count - 1)
    pairs = samples[places & ~1]
    cut = uniform(seed, epoch, pairs, MIX_KIND) < 0.5 if mixup and cutmix else np.full(count, bool(cutmix))
    keys = hash64(seed, epoch, pairs, MIX_SHARE)
    alphas = np.where(cut, cutmix, mixup)
    shares = np.array([_beta(int(key), float(alpha)) for key, alpha in zip(keys, alphas, strict=True)])
    high, wide = ((side * np.sqrt(1 - shares)).astype(np.int64) for side in (height, width))
    middle_y = (uniform(seed, epoch, pairs, MIX_TOP) * height).astype(np.int64)
    middle_x = (uniform(seed, epoch, pairs, MIX_LEFT) * width).astype(np.int64)
    top, bottom = np.clip([middle_y - high // 2, middle_y + high // 2], 0, height)
    left, right = np.clip([middle_x - wide // 2, middle_x + wide // 2], 0, width)
    boxes = np.where(cut[:, None], np.stack([left, top, right, bottom], axis=1), 0)
    shares = np.where(cut, 1 - _areas(boxes) / (height * width), shares)
    single = partner == places
    return Mixture(partner, np.where(single, 1, shares).astype(np.float32), np.where(single[:, None], 0, boxes))


def _beta(key: int, alpha: float) -> float:
    return float(np.random.Generator(np.random.Philox(key=key)).beta(alpha, alpha)) if alpha else 1.0


def mix(images: Tensor, mixture: Mixture) -> Tensor:
    """Images (B, C, H, W), each mixed with its partner: as a whole, or by a box of it."""
    cut = torch.from_numpy(_areas(mixture.boxes) > 0).to(images.device)[:, None, None, None]
    share = torch.from_numpy(mixture.share).to(images.device)[:, None, None, None]
    own = torch.where(cut, (~inside(mixture.boxes, images)).float(), share)
    return own * images + (1 - own) * images[torch.from_numpy(mixture.partner).to(images.device)]


def inside(boxes: Boxes, images: Tensor) -> Tensor:
    """Which pixels (B, 1, H, W) of images (B, C, H, W) lie within their boxes."""
    left, top, right, bottom = torch.from_numpy(boxes).to(images.device).unbind(dim=1)
    y = torch.arange(images.shape[2], device=images.device)[None, :]
    x = torch.arange(images.shape[3], device=images.device)[None, :]
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _areas(boxes: Boxes) -> NDArray[np.int64]:
    """The pixels (B,) of boxes; 0 for empty ones."""
    areas: NDArray[np.int64] = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    return areas


@dataclass(frozen=True)
class Erasures:
    """The boxes of B images that become noise."""

    boxes: Boxes
    noise: NDArray[np.uint64]
    """(B,), seeds of their noise."""


def draw_erasures(
    probability: float, seed: int, epoch: int, samples: NDArray[np.int64], size: tuple[int, int]
) -> Erasures:
    """The draws of samples (B,) for images of ``size`` (h, w): area uniform, ratio of height to width log-uniform.

    Of ten boxes the first that fits is taken; if none does, the image stays as it is.
    """
    height, width = size
    tries = several(samples, ERASING_TRIES)
    low, high = (math.log(ratio) for ratio in ERASED_RATIOS)
    least, most = ERASED_AREAS
    area = height * width * (least + (most - least) * uniform(seed, epoch, tries, ERASED_AREA))
    ratio = np.exp(low + (high - low) * uniform(seed, epoch, tries, ERASED_RATIO))
    tall, wide = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
    rows, first = np.arange(len(samples)), fits.argmax(axis=1)
    erased = fits[rows, first] & (uniform(seed, epoch, samples, ERASED) < probability)
    high_, wide_ = tall[rows, first], wide[rows, first]
    top = np.floor(uniform(seed, epoch, samples, ERASED_TOP) * (height - high_ + 1)).astype(np.int64)
    left = np.floor(uniform(seed, epoch, samples, ERASED_LEFT) * (width - wide_ + 1)).astype(np.int64)
    boxes = np.where(erased[:, None], np.stack([left, top, left + wide_, top + high_], axis=1), 0)
    return Erasures(boxes, hash64(seed, epoch, samples, ERASED_NOISE))


def erase(images: Tensor, erasures: Erasures) -> Tensor:
    """Normalised images (B, C, H, W) with normal noise of deviation 1 in their boxes."""
    images = images.clone()
    for row in np.flatnonzero(_areas(erasures.boxes)).tolist():
        left, top, right, bottom = erasures.boxes[row].tolist()
        generator = torch.Generator().manual_seed(int(erasures.noise[row]) >> 1)  # on the CPU: the same for any device
        noise = torch.randn(images.shape[1], bottom - top, right - left, generator=generator)
        images[row, :, top:bottom, left:right] = noise.to(images.device)
    return images


def draw_branches(
    drop_path: float, depth: int, seed: int, epoch: int, samples: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Factors (B, depth, 2) of each image's residual branches: 0 for a dropped one, else one over the share kept.

    The probability rises linearly from 0 in the first block to ``drop_path`` in the last.
    """
    kept = 1 - np.linspace(0, drop_path, depth)[None, :, None]
    numbers = uniform(seed, epoch, several(samples, 2 * depth), DROP_PATH).reshape(len(samples), depth, 2)
    return np.where(numbers < kept, 1 / kept, 0).astype(np.float32)

"""Random resized crops and flips for many samples at once, each drawn from the sample's own hash."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trainer.data.sampler import CROP_AREA, CROP_LEFT, CROP_RATIO, CROP_TOP, FLIP, hash64, several, uniform

RATIO = (3 / 4, 4 / 3)
TRIES = 10


def crop_boxes(
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    scale: tuple[float, float],
) -> NDArray[np.int64]:
    """Random resized crops: boxes (B, 4) of left, top, right, bottom in whole pixels.

    The box's share of the image's area is uniform in ``scale``, its ratio of width to height log-uniform in 3/4..4/3.
    If none of ten boxes fits in the image, the largest central box within the ratios is taken, as in torchvision.
    """
    tries = several(samples, TRIES)
    area = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * uniform(seed, epoch, tries, CROP_AREA))
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = np.exp(low + (high - low) * uniform(seed, epoch, tries, CROP_RATIO))
    wide = np.maximum(1, np.rint(np.sqrt(area * ratio))).astype(np.int64)
    tall = np.maximum(1, np.rint(np.sqrt(area / ratio))).astype(np.int64)
    fits = (wide <= widths[:, None]) & (tall <= heights[:, None])
    first = fits.argmax(axis=1)
    rows = np.arange(len(samples))
    fallback_wide, fallback_tall = _largest_central(heights, widths)
    any_fits = fits[rows, first]
    width = np.where(any_fits, wide[rows, first], fallback_wide)
    height = np.where(any_fits, tall[rows, first], fallback_tall)
    left = np.floor(uniform(seed, epoch, samples, CROP_LEFT) * (widths - width + 1)).astype(np.int64)
    top = np.floor(uniform(seed, epoch, samples, CROP_TOP) * (heights - height + 1)).astype(np.int64)
    left = np.where(any_fits, left, (widths - width) // 2)
    top = np.where(any_fits, top, (heights - height) // 2)
    return np.stack([left, top, left + width, top + height], axis=1)


def _largest_central(
    heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    wide = np.minimum(widths, np.maximum(1, np.rint(heights * RATIO[1]))).astype(np.int64)
    tall = np.minimum(heights, np.maximum(1, np.rint(widths / RATIO[0]))).astype(np.int64)
    return wide, tall


def flips(seed: int, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each sample (B,) is mirrored, with probability one half."""
    return (hash64(seed, epoch, samples, FLIP) & np.uint64(1)).astype(np.bool_)

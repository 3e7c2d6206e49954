"""Blurs: out of focus, through frosted glass, by motion, by zooming. Sizes in pixels are those of a side of 224."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from trainer.evaluation.corruptions.fields import (
    Field,
    by_bands,
    filtered,
    gaussian_blurred,
    motion_blurred,
    scale_of,
    splat,
)

DEFOCUS: Final = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius of the disc and deviation of the Gaussian that smooths the disc's edge, in pixels."""
GLASS: Final = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Deviation of the Gaussian before and after, greatest shift of a pixel, both in pixels; rounds of shifting."""
MOTION: Final = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
"""Radius of the smear and deviation of its Gaussian, in pixels."""
MOTION_DEGREES: Final = (-45.0, 45.0)
ZOOM: Final = ((1.11, 0.01), (1.15, 0.01), (1.20, 0.02), (1.24, 0.02), (1.30, 0.03))
"""The greatest of the zooms that are averaged, and their step from 1 on."""


def defocus_blur(pixels: Field, level: int, random: Generator) -> Field:  # noqa: ARG001 - nothing of it is drawn
    scale = scale_of(pixels)
    radius, edge = DEFOCUS[level]
    return filtered(pixels, *_disc(radius * scale, edge * scale))


@lru_cache(maxsize=32)
def _disc(radius: float, edge: float) -> tuple[Field, tuple[int, int]]:
    """The kernel of a disc, and its anchor: the disc's points on a fine grid, with the edge smoothed."""
    half = int(np.ceil(radius / min(0.25, radius / 8)))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * (radius / half)
    inside = x**2 + y**2 <= radius**2
    kernel, anchor = splat(x[inside], y[inside], np.ones(int(inside.sum())))
    margin = int(np.ceil(4 * edge))
    kernel = gaussian_blurred(np.pad(kernel, margin), edge)
    return kernel / kernel.sum(), (anchor[0] + margin, anchor[1] + margin)


def glass_blur(pixels: Field, level: int, random: Generator) -> Field:
    scale = scale_of(pixels)
    sigma, shift, rounds = GLASS[level]
    out = gaussian_blurred(pixels, sigma * scale)
    order = np.arange(out.shape[0] * out.shape[1])
    for _ in range(rounds):
        _swap(order, (out.shape[0], out.shape[1]), shift * scale, random)
    shuffled = out.reshape(-1, out.shape[2])[order].reshape(out.shape)
    return gaussian_blurred(shuffled, sigma * scale)


def _swap(order: NDArray[np.int64], shape: tuple[int, int], shift: float, random: Generator) -> None:
    """Swap each pixel once with one at most ``shift`` pixels away, in place in the flat order (H * W,) of the pixels.

    Pixels that are too far apart to meet are swapped together. Of a shift between two whole numbers a share of the
    pixels goes by the greater one: at a shift of 0.3, three pixels in ten are swapped with a direct neighbour.
    """
    height, width = shape
    reach = int(np.ceil(shift))
    draws = random.random((3, height, width), dtype=np.float32)
    own = np.where(draws[0] < shift - (reach - 1), reach, reach - 1)
    down = np.floor(draws[1] * 2 * own).astype(np.int64) - own
    right = np.floor(draws[2] * 2 * own).astype(np.int64) - own
    targets = np.arange(height * width).reshape(shape) + down * width + right
    sources = np.arange(height * width).reshape(shape)
    inner_height, inner_width = height - reach, width - reach
    for top in range(reach, min(3 * reach, inner_height)):
        for left in range(reach, min(3 * reach, inner_width)):
            rows, columns = slice(top, inner_height, 2 * reach), slice(left, inner_width, 2 * reach)
            one, other = sources[rows, columns].ravel(), targets[rows, columns].ravel()
            order[one], order[other] = order[other], order[one]


def motion_blur(pixels: Field, level: int, random: Generator) -> Field:
    scale = scale_of(pixels)
    radius, sigma = MOTION[level]
    return motion_blurred(pixels, radius * scale, sigma * scale, random.uniform(*MOTION_DEGREES))


def zoom_blur(pixels: Field, level: int, random: Generator) -> Field:  # noqa: ARG001 - nothing of it is drawn
    greatest, step = ZOOM[level]
    total = pixels.copy()
    zooms = np.arange(1, greatest + step / 2, step)
    for zoom in zooms:
        total += by_bands(pixels, partial(_zoomed, zoom=float(zoom)))
    return total / np.float32(len(zooms) + 1)


def _zoomed(pixels: Field, zoom: float) -> Field:
    height, width = pixels.shape[:2]
    matrix = np.array([[zoom, 0, (1 - zoom) * (width - 1) / 2], [0, zoom, (1 - zoom) * (height - 1) / 2]])
    out: NDArray[Any] = cv2.warpAffine(
        pixels, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return out

"""Random fields and filters that several corruptions use.

All of them are single-threaded numpy and OpenCV without BLAS, so a field's bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
"""Pixels (H, W, C) in 0..1, or one value for each pixel (H, W)."""

REFERENCE_SIDE: Final = 224
"""The shorter side for which the sizes in pixels of all severities are given."""
_BANDS_AT_ONCE: Final = 4
"""OpenCV warps no more bands in one call."""


def scale_of(pixels: NDArray[Any]) -> float:
    """What a size in pixels at the reference side is multiplied by for these pixels (H, W, C)."""
    return float(min(pixels.shape[:2]) / REFERENCE_SIDE)


def noise(shape: tuple[int, int], grain: float, random: Generator, interpolation: int = cv2.INTER_CUBIC) -> Field:
    """Standard normal noise (H, W) with one value for every ``grain`` pixels, interpolated in between.

    No grain is finer than a pixel.
    """
    nodes = [max(2, round(side / max(1.0, grain))) for side in shape]
    return resized(random.standard_normal((nodes[0], nodes[1]), dtype=np.float32), shape, interpolation)


def resized(field: Field, shape: tuple[int, int], interpolation: int = cv2.INTER_CUBIC) -> Field:
    """A field (h, w) at the size (H, W)."""
    if field.shape == shape:
        return field
    out: NDArray[Any] = cv2.resize(field, (shape[1], shape[0]), interpolation=interpolation)
    return out


def plasma(nodes: int, decay: float, random: Generator) -> Field:
    """A plasma fractal (n, n) in 0..1 that repeats at its edges, n being the power of two from ``nodes`` on.

    Midpoint displacement by the diamond-square method: each round puts a node between all neighbours, displaces it at
    random, and divides the greatest displacement by the square of ``decay``.
    """
    grid, reach = np.zeros((1, 1), dtype=np.float32), 1.0
    while len(grid) < nodes:
        below, right = np.roll(grid, -1, 0), np.roll(grid, -1, 1)
        displaced = (random.random((3, *grid.shape), dtype=np.float32) * 2 - 1) * np.float32(reach)
        centre = (grid + below + right + np.roll(below, -1, 1)) / 4 + displaced[0]
        finer = np.empty((2 * len(grid), 2 * len(grid)), dtype=np.float32)
        finer[::2, ::2], finer[1::2, 1::2] = grid, centre
        finer[::2, 1::2] = (grid + right + centre + np.roll(centre, 1, 0)) / 4 + displaced[1]
        finer[1::2, ::2] = (grid + below + centre + np.roll(centre, 1, 1)) / 4 + displaced[2]
        grid, reach = finer, reach / decay**2
    grid -= grid.min()
    return grid / max(float(grid.max()), 1e-9)


def splat(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[Field, tuple[int, int]]:
    """A kernel (h, w) of the sum 1 from weighted points around (0, 0), and its anchor (x, y), where that origin is.

    A point between pixels counts for its four neighbours, so a kernel smaller than a pixel still blurs a little.
    """
    left, top = int(np.floor(x.min())), int(np.floor(y.min()))
    wide, tall = int(np.floor(x.max())) - left + 2, int(np.floor(y.max())) - top + 2
    column, row = np.floor(x).astype(np.int64) - left, np.floor(y).astype(np.int64) - top
    part_x, part_y = x - np.floor(x), y - np.floor(y)
    kernel = np.zeros(tall * wide)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (part_y if down else 1 - part_y) * (part_x if right else 1 - part_x)
        kernel += np.bincount((row + down) * wide + column + right, weights * share, len(kernel))
    return (kernel / kernel.sum()).reshape(tall, wide).astype(np.float32), (-left, -top)


def filtered(pixels: Field, kernel: Field, anchor: tuple[int, int]) -> Field:
    """Pixels (H, W) or (H, W, C) under a kernel; the borders are reflected."""
    out: NDArray[Any] = cv2.filter2D(pixels, -1, kernel, anchor=anchor, borderType=cv2.BORDER_REFLECT)
    return out.reshape(pixels.shape)


def motion_blurred(pixels: Field, radius: float, sigma: float, degrees: float) -> Field:
    """Pixels smeared to one side: half a Gaussian of ``sigma`` pixels along a line of twice the radius.

    0 degrees is horizontal; the angle grows clockwise.
    """
    length = max(2 * radius, 1e-6)
    steps = np.linspace(0, length, max(2 * round(radius) + 1, 9))
    angle = np.deg2rad(degrees)
    return filtered(pixels, *splat(steps * np.cos(angle), steps * np.sin(angle), np.exp(-((steps / sigma) ** 2) / 2)))


def gaussian_blurred(pixels: Field, sigma: float) -> Field:
    """Pixels (H, W) or (H, W, C) under a Gaussian of ``sigma`` pixels; the borders are reflected."""
    side = 2 * max(1, int(4 * sigma + 0.5)) + 1
    out: NDArray[Any] = cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REFLECT)
    return out.reshape(pixels.shape)


def by_bands(pixels: Field, change: Callable[[Field], Any]) -> Field:
    """``change`` applied to pixels (H, W, C), a few bands at a time where OpenCV cannot take all at once."""
    bands = pixels.shape[2]
    if bands <= _BANDS_AT_ONCE:
        out: Field = change(pixels).reshape(pixels.shape)
        return out
    groups = range(0, bands, _BANDS_AT_ONCE)
    parts = [np.ascontiguousarray(pixels[:, :, first : first + _BANDS_AT_ONCE]) for first in groups]
    return np.concatenate([change(part).reshape(part.shape) for part in parts], axis=2)

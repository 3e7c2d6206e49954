"""Contrast, elastic transformation, pixelation and JPEG. Sizes in pixels are those of a side of 224."""

from __future__ import annotations

import io
from functools import partial
from typing import Any, Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from trainer.evaluation.corruptions.fields import Field, by_bands, gaussian_blurred, resized, scale_of

CONTRAST: Final = (0.4, 0.3, 0.2, 0.1, 0.05)
ELASTIC: Final = (
    (488.0, 170.8, 24.4),
    (488.0, 19.52, 48.8),
    (12.2, 2.44, 4.88),
    (17.08, 2.44, 4.88),
    (29.28, 2.44, 4.88),
)
"""Strength and smoothness of the displacement, and how far the corners of the affine map may move, in pixels."""
_NODES_PER_SIGMA: Final = 4
PIXELATE: Final = (0.6, 0.5, 0.4, 0.3, 0.25)
"""The share of rows and columns that is left."""
JPEG_QUALITY: Final = (25, 18, 15, 10, 7)


def contrast(pixels: Field, level: int, random: Generator) -> Field:  # noqa: ARG001 - nothing of it is drawn
    mean = pixels.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    flatter: Field = (pixels - mean) * np.float32(CONTRAST[level]) + mean
    return flatter


def elastic_transform(pixels: Field, level: int, random: Generator) -> Field:
    height, width = pixels.shape[:2]
    scale = scale_of(pixels)
    strength, sigma, corners = ELASTIC[level]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    columns += _displacement((height, width), scale, strength, sigma, random)
    rows += _displacement((height, width), scale, strength, sigma, random)
    (a, b, c), (d, e, f) = _affine((height, width), corners * scale, random).astype(np.float32)
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    return by_bands(pixels, partial(_taken, x=x, y=y))


def _displacement(
    shape: tuple[int, int], scale: float, strength: float, sigma: float, random: Generator
) -> NDArray[np.float32]:
    """How far each pixel (H, W) moves, in pixels of the picture: smoothed uniform noise.

    The noise has one value for each pixel of a picture whose side is 224, whatever the picture's own side is; otherwise
    small pictures would be displaced as far as large ones. Where a coarser grid gives the same smooth field, the noise
    is drawn there, with the deviation that the mean of its cells would have.
    """
    spacing = max(1.0, 1 / scale, sigma / _NODES_PER_SIGMA)
    nodes = [max(2, round(side / (scale * spacing))) for side in shape]
    draws = random.random((nodes[0], nodes[1]), dtype=np.float32) * 2 - 1
    smooth = gaussian_blurred(draws, sigma / spacing) * np.float32(strength / spacing * scale)
    return resized(smooth, shape)


def _affine(shape: tuple[int, int], reach: float, random: Generator) -> NDArray[np.float64]:
    """A map (2, 3) from places in the result to places in the picture: three corners of a square, each moved."""
    centre, side = np.array(shape[::-1]) / 2, min(shape) // 3
    corners = centre + side * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + random.uniform(-reach, reach, (3, 2))
    matrix: NDArray[Any] = cv2.getAffineTransform(moved.astype(np.float32), corners.astype(np.float32))
    return matrix


def _taken(pixels: Field, x: Field, y: Field) -> Field:
    out: NDArray[Any] = cv2.remap(pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return out


def pixelate(pixels: Field, level: int, random: Generator) -> Field:  # noqa: ARG001 - nothing of it is drawn
    height, width = pixels.shape[:2]
    share = PIXELATE[level]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    return _through_pillow(pixels, partial(_pixelated, small=small))


def _pixelated(image: Image.Image, small: tuple[int, int]) -> Image.Image:
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def jpeg_compression(pixels: Field, level: int, random: Generator) -> Field:  # noqa: ARG001 - nothing of it is drawn
    return _through_pillow(pixels, partial(_compressed, quality=JPEG_QUALITY[level]))


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _through_pillow(pixels: Field, change: partial[Image.Image]) -> Field:
    """Three channels as one picture in colour; any other number channel by channel, as pictures in grey."""
    values = np.rint(pixels * 255).astype(np.uint8)
    bands = [values] if values.shape[2] == 3 else [values[:, :, band] for band in range(values.shape[2])]
    changed = [np.asarray(change(Image.fromarray(band))) for band in bands]
    return np.dstack(changed).astype(np.float32) / np.float32(255)

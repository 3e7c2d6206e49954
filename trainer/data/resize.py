"""Resizing pixels bicubically, without aliasing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SMOOTHED_FROM, _AVERAGED_FROM = 1.05, 2.5
"""Shrink factors of a side: from the first on it is smoothed before resizing, from the second on it is averaged."""
_BANDS_AT_ONCE = 4
"""OpenCV averages no more bands in one call."""

cv2.setNumThreads(1)  # the loader spreads images over the cores; more threads for each would only compete


def resize(pixels: NDArray[np.uint8], size: tuple[int, int], flip: bool) -> NDArray[np.uint8]:
    """Pixels (H, W, C) resized bicubically to ``size`` (h, w), without aliasing if they shrink."""
    if pixels.shape[2] > _BANDS_AT_ONCE:
        groups = range(0, pixels.shape[2], _BANDS_AT_ONCE)
        parts = [np.ascontiguousarray(pixels[:, :, first : first + _BANDS_AT_ONCE]) for first in groups]
        return np.concatenate([resize(part, size, flip) for part in parts], axis=2)
    out: NDArray[Any] = pixels if min(pixels.strides) > 0 else np.ascontiguousarray(pixels)
    (tall, wide, channels), (height, width) = out.shape, size
    shrink = (tall / height, wide / width)
    if max(shrink) >= _AVERAGED_FROM:
        out = cv2.resize(out, (min(width, wide), min(height, tall)), interpolation=cv2.INTER_AREA)
    elif max(shrink) > _SMOOTHED_FROM:
        out = cv2.sepFilter2D(out, -1, _smoothing(shrink[1]), _smoothing(shrink[0]))
    if out.shape[:2] != size:
        out = cv2.resize(out, (width, height), interpolation=cv2.INTER_CUBIC)
    if flip:
        out = cv2.flip(out, 1)
    return np.ascontiguousarray(out.reshape(height, width, channels))


def _smoothing(shrink: float) -> NDArray[np.float32]:
    """A low-pass filter of three taps for a line that is about to become ``shrink`` times shorter.

    Bicubic interpolation after it is closer to an antialiased bicubic filter than averaging over areas, and takes a
    third of the time. The weight is fitted to Pillow's filter on photographs.
    """
    excess = max(shrink - 1, 0.0)
    side = 0.3 * excess + 0.15 * excess * excess
    return np.array([side, 1, side], dtype=np.float32) / np.float32(1 + 2 * side)

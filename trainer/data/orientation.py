"""Turning images upright by their EXIF orientation."""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

TURNS: Final = {
    1: (False, False, False),
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}
"""What turns an image of an EXIF orientation upright: mirror left to right, mirror top to bottom, transpose."""


def turned(pixels: NDArray[T], orientation: int) -> NDArray[T]:
    """Stored pixels (H, W, C) turned upright; an orientation that EXIF does not know changes nothing."""
    mirrored, upside, transposed = TURNS.get(orientation, TURNS[1])
    pixels = pixels[:: -1 if upside else 1, :: -1 if mirrored else 1]
    return pixels.transpose(1, 0, 2) if transposed else pixels

"""Images that cannot be decoded, and the limits that protect against them."""

from __future__ import annotations

import struct
import tokenize
from typing import Final

MAX_PIXELS: Final = 178_956_970
"""A larger image is treated as a decompression bomb: Pillow's own limit, applied to the other readers as well."""
MAX_BYTES: Final = 4 * MAX_PIXELS
"""Bytes of an image's values: as many as the largest RGBA image has."""
DAMAGE_ERRORS: Final = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error,
    tokenize.TokenError,
)  # fmt: skip
"""What the readers of Pillow, tifffile and numpy raise for damaged files."""


class Unreadable(ValueError):
    """An image that cannot be decoded, with the reason."""


def check_size(height: int, width: int, bytes_per_pixel: int = 1) -> None:
    """Raise `Unreadable` for an image of too many pixels, or whose values would take too much memory."""
    if height * width > MAX_PIXELS:
        raise Unreadable(f"too many pixels: {width} x {height}, {MAX_PIXELS} are allowed")
    if height * width * bytes_per_pixel > MAX_BYTES:
        raise Unreadable(f"too large: {width} x {height} pixels of {bytes_per_pixel} bytes, {MAX_BYTES} are allowed")


def check_shape(actual: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raise `Unreadable` if an image has not the expected height and width."""
    if actual != tuple(expected):
        raise Unreadable(f"is {actual[1]} x {actual[0]} pixels, but {expected[1]} x {expected[0]} were expected")

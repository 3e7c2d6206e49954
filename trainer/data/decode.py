"""Bytes to pixels: one image file of any common kind to uint8 of the wanted channels."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Image.init()
Image.MAX_IMAGE_PIXELS = 89_478_485
"""Pillow warns above this and refuses above twice as many: a larger image is taken for a decompression bomb."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = {"I", "I;16", "I;16B", "I;16L", "F"}


class Unreadable(ValueError):
    """An image that cannot be decoded, with the reason."""


def decode(data: bytes, channels: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of an image file's bytes, turned as its EXIF orientation says.

    Greyscale, palette, CMYK, alpha and 16-bit images become the wanted channels; transparency is dropped, not
    blended. Raises `Unreadable`, also for a truncated file and for a decompression bomb.
    """
    return np.asarray(open_image(data, channels))


def open_image(data: bytes, channels: int) -> Image.Image:
    """The same as a Pillow image of mode L, RGB or RGBA."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata that does not matter to pixels
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                turned = ImageOps.exif_transpose(image)
                return _convert(turned, MODES[channels])
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too many pixels: {error}") from error
    # Pillow's readers raise many kinds of errors on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _WIDE_MODES:
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" or values.max(initial=0) > 1 else 1.0
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def crop_resize(
    pixels: NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int], flip: bool
) -> NDArray[np.uint8]:
    """The box (left, top, right, bottom) of pixels (H, W, C), resized bicubically with antialiasing to ``size``
    (height, width), mirrored where ``flip``.
    """
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    resized = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))
    resized = resized.reshape(size[0], size[1], channels)
    return resized[:, ::-1] if flip else resized

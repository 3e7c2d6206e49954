"""How a whole picture becomes a network's input: the one definition for evaluations and for every exported folder.

A picture is turned upright and converted to the network's channels (`decode.decode`). For a square network its shortest
edge is resized to the network's side, and the central square is cropped; for any other, where transformers' processors
have no such rule, it is resized to exactly the network's height and width. The filter is Pillow's antialiased bicubic,
band by band. Then values are scaled to 0..1 and normalised by each channel's mean and deviation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EIGHT_BITS: Final = (0.0, 255.0)
"""The pixel values that are black and white unless a dataset has others."""
COLOUR_CHANNELS: Final = 3
_LONGEST_PER_SHORTEST: Final = 100
"""A picture of more is cut to its centre first: resized whole it could take any amount of memory."""


def processor_settings(
    channels: int,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    value_range: tuple[float, float] = EIGHT_BITS,
) -> dict[str, Any]:
    """The preprocessing in the form of transformers' BitImageProcessor, whose keys need no transformers to be followed.

    ``size`` is the network's (h, w), ``value_range`` the pixel values that were black and white in training. The
    processor only multiplies: where black is not 0, the mean takes that up.
    """
    low, high = value_range
    factor = 1 / (high - low)
    height, width = size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == COLOUR_CHANNELS,
        "do_resize": True,
        "size": {"shortest_edge": height} if height == width else {"height": height, "width": width},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,  # of a network that is not square, this changes nothing
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": factor,
        "do_normalize": True,
        "image_mean": [value + low * factor for value in mean],
        "image_std": list(std),
    }


def timm_settings(size: tuple[int, int]) -> dict[str, Any]:
    """Resizing and cropping in the form of timm's `pretrained_cfg`, whose crop begins a pixel later than ours if the
    margin leaves 3 when divided by 4: torchvision rounds half of it where transformers rounds down.
    """
    return {
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center" if size[0] == size[1] else "squash",
    }


def fitted(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A whole picture's pixels (H, W, C) resized and cropped to a network's ``size`` (h, w): (h, w, C).

    A picture that already has this size is unchanged, to the bit.
    """
    if size[0] != size[1]:
        return _resized(pixels, size)
    pixels = _without_far_ends(pixels)
    tall, wide, side = pixels.shape[0], pixels.shape[1], size[0]
    shortest = min(tall, wide)
    pixels = _resized(pixels, (side * tall // shortest, side * wide // shortest))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def _without_far_ends(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The central part of a picture that is extremely long or tall; any other as it is."""
    longest = _LONGEST_PER_SHORTEST * min(pixels.shape[:2])
    top, left = (max(0, (edge - longest) // 2) for edge in pixels.shape[:2])
    return pixels[top : top + longest, left : left + longest]


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels (H, W, C) resized to ``size`` (h, w) by Pillow's bicubic filter; unchanged if they have this size."""
    if pixels.shape[:2] == size:
        return pixels
    if pixels.shape[2] == COLOUR_CHANNELS:
        return np.asarray(_resized_image(pixels, size))
    # Not as RGBA or LA, of which Pillow would weigh colours by transparency.
    bands = [np.asarray(_resized_image(pixels[:, :, band], size)) for band in range(pixels.shape[2])]
    return np.stack(bands, axis=2)


def _resized_image(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], Image.Resampling.BICUBIC)

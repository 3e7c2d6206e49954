"""The 15 corruptions of ImageNet-C, each at five severities.

From their definitions in Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019, arXiv 1903.12261), with the benchmark's constants for pictures of 224 pixels. Sizes in pixels
are scaled by the shorter side / 224; strengths, shares and qualities are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias
from zlib import crc32

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from trainer.data.sampler import CORRUPTION, hash64
from trainer.evaluation.corruptions.blurs import defocus_blur, glass_blur, motion_blur, zoom_blur
from trainer.evaluation.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate
from trainer.evaluation.corruptions.fields import Field
from trainer.evaluation.corruptions.noises import gaussian_noise, impulse_noise, shot_noise
from trainer.evaluation.corruptions.weather import brightness, fog, frost, snow
from trainer.spec.evaluate import CORRUPTIONS, Corruption

_Corruption: TypeAlias = Callable[[Field, int, Generator], Field]
_ALL: Final[Mapping[str, _Corruption]] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
    )
}

SEVERITIES: Final = (1, 2, 3, 4, 5)
LEAST_SIDE: Final = 8
NOTES: Final[Mapping[str, str]] = {"frost": "synthetic texture"}
"""What a result says beside a corruption that differs from the original."""


def corrupted(pixels: NDArray[np.uint8], name: Corruption, severity: int, key: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as the network would see them, corrupted: uint8 of the same shape.

    ``key`` identifies the image, from 0 on. All random numbers come from (key, name, severity), so that the result does
    not depend on the order of the images, nor on who computes it.
    """
    _check(pixels, name, severity, key)
    seed = hash64(crc32(name.encode()), severity, np.array([key]), CORRUPTION)[0]
    scaled = np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255)
    changed = _ALL[name](scaled, severity - 1, Generator(Philox(key=int(seed))))
    return np.rint(np.clip(changed, 0, 1) * 255).astype(np.uint8)


def _check(pixels: NDArray[np.uint8], name: str, severity: int, key: int) -> None:
    if name not in _ALL:
        raise ValueError(f"there is no corruption {name!r}: use one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}: use 1 to {SEVERITIES[-1]}")
    if not 0 <= key < 2**63:
        raise ValueError(f"key is {key}: use a number from 0 to 2**63 - 1 that identifies the image")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or min(pixels.shape[:2]) < LEAST_SIDE or pixels.shape[2] < 1:
        raise ValueError(
            f"pixels are {pixels.dtype} of the shape {pixels.shape}: use uint8 (height, width, channels) with sides of "
            f"at least {LEAST_SIDE} pixels"
        )

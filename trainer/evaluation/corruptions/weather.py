"""Snow, frost, fog and brightness. Sizes in pixels are those of a side of 224.

Snow, frost and fog are grey: the same layer in every channel. The original's frost is cut from photographs; ours is a
synthetic texture, so its results compare with one another and not with those of the original frost.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from trainer.evaluation.corruptions.fields import (
    REFERENCE_SIDE,
    Field,
    motion_blurred,
    noise,
    plasma,
    scale_of,
)

SNOW: Final = (
    (0.10, 0.3, 3.0, 0.50, 10, 4, 0.80),
    (0.20, 0.3, 2.0, 0.50, 12, 4, 0.70),
    (0.55, 0.3, 4.0, 0.90, 12, 8, 0.70),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
"""Mean and deviation of the noise, its grain in pixels, the threshold under which there is no flake, radius and
deviation of the flakes' motion in pixels, and the picture's own share beside its whitened copy."""
LEAST_FLAKE: Final = 2
"""No flake is smaller, in pixels of the picture: finer noise is not smoothed in between, and would make more snow."""
SNOW_DEGREES: Final = (-135.0, -45.0)
FROST: Final = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""What the picture and the frost are multiplied by before they are added."""
FROST_CELLS: Final = (64, 32, 16, 8, 4, 2)
"""Sizes of the crystals, in pixels."""
FROST_BEND: Final = 6
"""How far the crystals are bent, in pixels."""
FOG: Final = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Strength of the fog, and the decay of its fractal."""
FOG_PERIOD: Final = 256
"""After how many pixels the fog repeats."""
BRIGHTNESS_SHIFT: Final = (0.1, 0.2, 0.3, 0.4, 0.5)


def snow(pixels: Field, level: int, random: Generator) -> Field:
    scale = scale_of(pixels)
    mean, deviation, grain, threshold, radius, sigma, own = SNOW[level]
    shape, flake = (pixels.shape[0], pixels.shape[1]), max(LEAST_FLAKE, grain * scale)
    flakes = mean + deviation * noise(shape, flake, random, cv2.INTER_LINEAR)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1)).astype(np.float32)
    flakes = motion_blurred(flakes, radius * scale, sigma * scale, random.uniform(*SNOW_DEGREES))
    whitened = np.maximum(pixels, _grey(pixels)[:, :, None] * 1.5 + 0.5)
    layer = flakes + flakes[::-1, ::-1]
    snowed: Field = np.float32(own) * pixels + np.float32(1 - own) * whitened + layer[:, :, None]
    return snowed


def _grey(pixels: Field) -> Field:
    """The luma of red, green and blue; of any other number of channels their mean."""
    if pixels.shape[2] == 3:
        luma: NDArray[Any] = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return luma
    mean: Field = pixels.mean(axis=2)
    return mean


def frost(pixels: Field, level: int, random: Generator) -> Field:
    own, added = FROST[level]
    texture = _frost_texture((pixels.shape[0], pixels.shape[1]), scale_of(pixels), random)
    return np.float32(own) * pixels + np.float32(added) * texture[:, :, None]


def _frost_texture(shape: tuple[int, int], scale: float, random: Generator) -> Field:
    """Ice on a window (H, W) in 0..1: bright ridges of several sizes, finer ones growing from coarser, in patches.

    A ridge is where a smooth noise crosses zero. The plane is bent by another noise first, so that the ridges fan out.
    """
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x, y = (axis + FROST_BEND * scale * noise(shape, FROST_CELLS[1] * scale, random) for axis in (x, y))
    ice, grown = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    for cell in FROST_CELLS:
        smooth = noise(shape, cell * scale, random)
        bent = cv2.remap(smooth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        ridge = np.exp(-4 * np.abs(bent)) * grown
        ice += ridge
        grown = 0.35 + 0.65 * ridge
    ice *= 1 + 0.5 * np.tanh(noise(shape, FROST_CELLS[0] * scale, random))
    melted: Field = ice / (ice + np.float32(ice.mean()))
    return melted


def fog(pixels: Field, level: int, random: Generator) -> Field:
    strength, decay = FOG[level]
    period = FOG_PERIOD / REFERENCE_SIDE * min(pixels.shape[:2])
    fractal = plasma(int(np.ceil(period)), decay, random)
    rows, columns = (np.arange(side) * (len(fractal) / period) for side in pixels.shape[:2])
    x, y = (grid.astype(np.float32) for grid in np.meshgrid(columns % len(fractal), rows % len(fractal)))
    layer = cv2.remap(fractal, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    brightest = float(pixels.max())
    fogged: Field = (pixels + np.float32(strength) * layer[:, :, None]) * np.float32(brightest / (brightest + strength))
    return fogged


def brightness(pixels: Field, level: int, random: Generator) -> Field:  # noqa: ARG001 - nothing of it is drawn
    """The value of HSV, which is the largest channel, raised; hue and saturation stay. For any number of channels."""
    value = pixels.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32(BRIGHTNESS_SHIFT[level]), 1)
    ratio = raised / np.maximum(value, np.float32(1e-6))
    brighter: Field = np.where(value > 0, pixels * ratio, raised)
    return brighter

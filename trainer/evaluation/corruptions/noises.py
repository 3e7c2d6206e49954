"""Noise in each value of each channel by itself. Strengths are shares of the full range of values."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.random import Generator

from trainer.evaluation.corruptions.fields import Field

GAUSSIAN_DEVIATION: Final = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT_PHOTONS: Final = (60, 25, 12, 5, 3)
"""How many photons make full white."""
IMPULSE_SHARE: Final = (0.03, 0.06, 0.09, 0.17, 0.27)
"""The share of values that become black or white, each with the same probability."""


def gaussian_noise(pixels: Field, level: int, random: Generator) -> Field:
    return pixels + np.float32(GAUSSIAN_DEVIATION[level]) * random.standard_normal(pixels.shape, dtype=np.float32)


def shot_noise(pixels: Field, level: int, random: Generator) -> Field:
    photons = np.float32(SHOT_PHOTONS[level])
    return random.poisson(pixels * photons).astype(np.float32) / photons


def impulse_noise(pixels: Field, level: int, random: Generator) -> Field:
    share, draw = np.float32(IMPULSE_SHARE[level]), random.random(pixels.shape, dtype=np.float32)
    noisy = np.where(draw < share, np.float32(1), pixels)
    return np.where(draw < share / 2, np.float32(0), noisy)

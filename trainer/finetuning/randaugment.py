"""RandAugment (arXiv 1909.13719) whose every draw is a function of (seed, epoch, sample), on images of any device.

Each operation takes all images of a batch that drew it, each with a strength of its own, so that what becomes of an
image does not depend on the images beside it. Strengths, from 0 to 1, mean what they mean in common recipes, the
stronger the further from the original; signs are drawn.

Shapes: B images, C channels, H x W pixels with values in 0..1, S operations of an image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import kornia.enhance as ke
import numpy as np
import torch
from kornia.geometry.transform import warp_affine
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.sampler import (
    OPERATION,
    OPERATION_APPLIED,
    OPERATION_SIGN,
    STRENGTH_ANGLE,
    STRENGTH_RADIUS,
    several,
    uniform,
)
from trainer.spec.finetuning import RandAugmentSettings

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (b, C, H, W) and their strengths (b,) in -1..1, whose sign matters to some, to images."""

GREATEST: Final = 10.0
"""The magnitude at which the strength is 1."""
ANGLE, SHEAR, SHIFT, FACTOR = math.radians(30), 0.3, 0.45, 0.9
"""At strength 1: of a rotation, of a shear, of a translation as a share of the side, and of a factor off 1."""
ADDED: Final = 110 / 255
HALF: Final = 128 / 255


@dataclass(frozen=True)
class OperationDraws:
    """What each of B images undergoes, in S steps."""

    operation: NDArray[np.int64]
    """(B, S), indices of `operations_for`; -1: none."""
    strength: NDArray[np.float32]
    """(B, S), in -1..1."""


def draw_operations(
    settings: RandAugmentSettings, channels: int, seed: int, epoch: int, samples: NDArray[np.int64]
) -> OperationDraws:
    """The draws of samples (B,) for images with so many channels."""
    ids, kinds = several(samples, settings.operations), len(operations_for(channels))
    operation = (uniform(seed, epoch, ids, OPERATION) * kinds).astype(np.int64)
    applied = uniform(seed, epoch, ids, OPERATION_APPLIED) < 0.5
    # A normal number from two uniform ones (Box and Muller).
    radius = np.sqrt(-2 * np.log1p(-uniform(seed, epoch, ids, STRENGTH_RADIUS)))
    normal = radius * np.cos(2 * math.pi * uniform(seed, epoch, ids, STRENGTH_ANGLE))
    magnitude = np.clip(settings.magnitude + settings.magnitude_std * normal, 0, GREATEST)
    sign = np.where(uniform(seed, epoch, ids, OPERATION_SIGN) < 0.5, -1, 1)
    return OperationDraws(np.where(applied, operation, -1), (sign * magnitude / GREATEST).astype(np.float32))


def augment(images: Tensor, draws: OperationDraws) -> Tensor:
    """Images (B, C, H, W) after the operations that each of them drew."""
    operations = operations_for(images.shape[1])
    images = images.clone()
    for step in range(draws.operation.shape[1]):
        for number in np.unique(draws.operation[:, step]):
            if number < 0:
                continue
            rows = np.flatnonzero(draws.operation[:, step] == number)
            strength = torch.from_numpy(draws.strength[rows, step]).to(images.device)
            index = torch.from_numpy(rows).to(images.device)
            images[index] = operations[number](images[index], strength)
    return images


def operations_for(channels: int) -> tuple[Operation, ...]:
    """The operations for images with so many channels: saturation needs three."""
    return (*OPERATIONS, _saturation) if channels == 3 else OPERATIONS


def _full_contrast(x: Tensor, _: Tensor) -> Tensor:
    """Each channel over the whole range; a constant one stays as it is."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) / span.clamp(min=1e-12), x)


def _equalised(x: Tensor, _: Tensor) -> Tensor:
    out: Tensor = ke.equalize(x)
    return out


def _inverted(x: Tensor, _: Tensor) -> Tensor:
    return 1 - x


def _posterised(x: Tensor, strength: Tensor) -> Tensor:
    """The four highest bits or fewer of each value."""
    out: Tensor = ke.posterize(x, 4 - (strength.abs() * 4).int())
    return out


def _solarised(x: Tensor, strength: Tensor) -> Tensor:
    """Values are inverted from a threshold on, which falls from white."""
    threshold = 256 - (strength.abs() * 256).int()
    return torch.where(x * 255 >= _wide(threshold), 1 - x, x)


def _solarised_by_addition(x: Tensor, strength: Tensor) -> Tensor:
    """Dark values become lighter."""
    return torch.where(x < HALF, (x + _wide(strength.abs() * ADDED)).clamp(max=1), x)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    out: Tensor = ke.adjust_contrast_with_mean_subtraction(x, 1 + FACTOR * strength)
    return out


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    out: Tensor = ke.adjust_brightness_accumulative(x, 1 + FACTOR * strength)
    return out


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    """Away from the smoothed image, or towards it; the outermost pixels stay as they are.

    The nine neighbours are added up one by one: a convolution rounds otherwise for other numbers of images.
    """
    height, width = x.shape[2], x.shape[3]
    smooth = 4 * x[:, :, 1:-1, 1:-1]
    for row, column in itertools.product(range(3), range(3)):
        smooth = smooth + x[:, :, row : height - 2 + row, column : width - 2 + column]
    blurred = x.clone()
    blurred[:, :, 1:-1, 1:-1] = smooth / 13
    return (blurred + (1 + FACTOR * _wide(strength)) * (x - blurred)).clamp(0, 1)


def _saturation(x: Tensor, strength: Tensor) -> Tensor:
    out: Tensor = ke.adjust_saturation_with_gray_subtraction(x, 1 + FACTOR * strength)
    return out


def _rotated(x: Tensor, strength: Tensor) -> Tensor:
    cos, sin = (ANGLE * strength).cos(), (ANGLE * strength).sin()
    return _warped(x, (cos, -sin, sin, cos))


def _sheared_along_x(x: Tensor, strength: Tensor) -> Tensor:
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(x, (one, SHEAR * strength, none, one))


def _sheared_along_y(x: Tensor, strength: Tensor) -> Tensor:
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(x, (one, none, SHEAR * strength, one))


def _shifted_along_x(x: Tensor, strength: Tensor) -> Tensor:
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(x, (one, none, none, one), (SHIFT * x.shape[3] * strength, none))


def _shifted_along_y(x: Tensor, strength: Tensor) -> Tensor:
    one, none = torch.ones_like(strength), torch.zeros_like(strength)
    return _warped(x, (one, none, none, one), (none, SHIFT * x.shape[2] * strength))


def _warped(
    x: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor], shift: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Images under a linear map of (x, y) about their centre and a shift in pixels; what they uncover is mid-grey."""
    centre_x, centre_y = (x.shape[3] - 1) / 2, (x.shape[2] - 1) / 2
    a, b, c, d = matrix
    move_x, move_y = shift or (torch.zeros_like(a), torch.zeros_like(a))
    first = torch.stack([a, b, centre_x - a * centre_x - b * centre_y + move_x], dim=1)
    second = torch.stack([c, d, centre_y - c * centre_x - d * centre_y + move_y], dim=1)
    size = (x.shape[2], x.shape[3])
    moved: Tensor = warp_affine(x - 0.5, torch.stack([first, second], dim=1), size, mode="bilinear")
    return moved + 0.5


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


OPERATIONS: Final[tuple[Operation, ...]] = (
    _full_contrast, _equalised, _inverted, _rotated, _posterised, _solarised, _solarised_by_addition, _contrast,
    _brightness, _sharpness, _sheared_along_x, _sheared_along_y, _shifted_along_x, _shifted_along_y,
)  # fmt: skip

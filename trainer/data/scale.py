"""The scale of a dataset's pixel values: which of them become black and white."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.notices import Notice

EIGHT_BIT: Final = "uint8"
_UNIT: Final = (0.0, 1.0)
_FLOAT_SLACK: Final = 0.1
"""Floats that exceed 1 or 255 by less count as values of 0..1 or 0..255: reflectance has single brighter pixels."""


class Seen(NamedTuple):
    """The values of a dataset's images of one type, for example `uint16`."""

    type: str
    images: int
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """Turns an image's values, whatever their type, into 0..255. One for all images of a dataset."""

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Values that become 0 and 255, by the values' type; without an entry all that the type can hold, or 0..1."""

    def range_of(self, kind: np.dtype[np.generic]) -> tuple[float, float]:
        """The values of this type that become 0 and 255."""
        if kind.name in self.ranges:
            return self.ranges[kind.name]
        if kind.kind in "ui":
            limits = np.iinfo(kind.name)
            return float(limits.min), float(limits.max)
        return _UNIT

    def is_identity(self, kind: np.dtype[np.generic]) -> bool:
        """Whether values of this type stay as they are."""
        return kind == np.uint8 and self.range_of(kind) == (0.0, 255.0)

    def to_bytes(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """``values`` as uint8, in the same shape; what lies outside the range becomes 0 or 255, not-a-number 0."""
        if self.is_identity(values.dtype):
            return np.asarray(values, dtype=np.uint8)
        low, high = self.range_of(values.dtype)
        if values.dtype.kind == "u" and values.dtype.itemsize <= 2:  # through a table, ten times as fast
            table = _scaled(np.arange(256**values.dtype.itemsize, dtype=np.float64), low, high)
            scaled: NDArray[np.uint8] = table[values]
            return scaled
        return _scaled(values.astype(np.float64), low, high)

    def __str__(self) -> str:
        return ", ".join(f"{kind} {low:g} to {high:g}" for kind, (low, high) in sorted(self.ranges.items()))


def _scaled(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore", over="ignore"):
        shares = np.nan_to_num((values - low) * (255.0 / (high - low)), nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(shares, 0, 255)).astype(np.uint8)


def scale_of(
    wanted: tuple[float, float] | None, seen: Iterable[Seen], trained: Scale | None = None
) -> tuple[Scale, list[Notice]]:
    """The scale for readable images of these values.

    ``wanted`` is the spec's range, None if it is `auto`: then images to evaluate on have the scale of those that are
    ``trained`` on, and other images one that fits their values.
    """
    known = trained.ranges if trained else {}
    ranges: dict[str, tuple[float, float]] = {}
    notices = []
    for each in seen:
        given = wanted or known.get(each.type)
        ranges[each.type] = low, high = given or _automatic(each)
        if given and (each.high <= low or each.low >= high):
            text = f"dataset.value_range: {each.images} {each.type} images have values of {each.low:g} to {each.high:g}"
            notices.append(Notice("value_range_misses", f"{text}, outside {low:g} to {high:g}: they are of one colour"))
        elif not given and each.type != EIGHT_BIT:
            text = (
                f"The {each.images} {each.type} images have values of {each.low:g} to {each.high:g}; "
                f"{low:g} becomes black and {high:g} white. Set dataset.value_range for another scale"
            )
            notices.append(Notice("value_range_chosen", text))
        elif not given and each.high <= (high - low) / 8:
            text = (
                f"The {each.images} images of 8 bits use values of {each.low:g} to {each.high:g} only, and look black: "
                f"set dataset.value_range: [0, {each.high:g}] to see them"
            )
            notices.append(Notice("value_range_dark", text))
    return Scale(ranges), notices


def _automatic(seen: Seen) -> tuple[float, float]:
    kind = np.dtype(seen.type)
    if kind == np.uint8:
        return 0.0, 255.0
    if kind.kind == "b":
        return _UNIT
    if kind.kind == "u":
        bits = max(1, math.ceil(math.log2(seen.high + 1)))
        return 0.0, float(2**bits - 1)
    if kind.kind == "f" and seen.low >= 0:
        for top in (1.0, 255.0):
            if top / 2 < seen.high <= top * (1 + _FLOAT_SLACK):
                return 0.0, top
    return (seen.low, seen.high) if seen.low < seen.high else (seen.low, seen.low + 1)

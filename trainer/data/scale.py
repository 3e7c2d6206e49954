"""The scale of a dataset's pixel values: which of them become black and white."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.notices import Notice

EIGHT_BIT: Final = "uint8"
_UNIT: Final = (0.0, 1.0)
_BYTES: Final = (0.0, 255.0)
_LARGEST: Final = math.nextafter(sys.float_info.max, 0)
"""The largest number that another one is above."""
_FLOAT_SLACK: Final = 0.1
"""Floats that exceed 1 or 255 by less count as values of 0..1 or 0..255: reflectance has single brighter pixels."""


class Seen(NamedTuple):
    """The values of a dataset's images of one type, for example `uint16`."""

    type: str
    images: int
    low: float
    """NaN if no value is finite."""
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

    @property
    def keeps_bytes(self) -> bool:
        """Whether values of 8 bits stay as they are."""
        return self.ranges.get(EIGHT_BIT, _BYTES) == _BYTES

    @property
    def value_range(self) -> tuple[float, float]:
        """The values that become 0 and 255: of every type where they are the same, otherwise of 8 bits."""
        ranges = {*self.ranges.values()}
        return ranges.pop() if len(ranges) == 1 else self.ranges.get(EIGHT_BIT, _BYTES)

    def to_bytes(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """``values`` as uint8, in the same shape; what lies outside the range becomes 0 or 255, not-a-number 0."""
        if values.dtype == np.uint8 and self.keeps_bytes:
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
    notices: list[Notice] = []
    for each in seen:
        given = wanted or known.get(each.type)
        ranges[each.type] = given or _automatic(each)
        if math.isnan(each.low):
            text = f"The {each.images} {each.type} images have no finite value: all become black"
            notices.append(Notice("value_range_not_finite", f"{text}. Are these the right files?"))
        else:
            notices += _about_given(each, *given) if given else _about_automatic(each, *ranges[each.type])
    return Scale(ranges), notices


def _about_given(seen: Seen, low: float, high: float) -> Iterator[Notice]:
    text = f"dataset.value_range: {seen.images} {seen.type} images have values of {seen.low:g} to {seen.high:g}"
    if seen.high <= low or seen.low >= high:
        yield Notice("value_range_misses", f"{text}, outside {low:g} to {high:g}: they are of one colour")
    elif min(high, seen.high) - max(low, seen.low) < (seen.high - seen.low) / 2:
        yield Notice(
            "value_range_cuts",
            f"{text}, and those outside {low:g} to {high:g} become black or white. This is right if the range was "
            "chosen to show a part of the values, and loses detail if it was measured on other images",
        )


def _about_automatic(seen: Seen, low: float, high: float) -> Iterator[Notice]:
    if seen.type != EIGHT_BIT:
        text = (
            f"The {seen.images} {seen.type} images have values of {seen.low:g} to {seen.high:g}; "
            f"{low:g} becomes black and {high:g} white. Set dataset.value_range for another scale"
        )
        yield Notice("value_range_chosen", text)
    elif seen.high == 0:
        text = f"The {seen.images} images of 8 bits are all black: 0 is their only value. Are these the right files?"
        yield Notice("value_range_dark", text)
    elif seen.high <= (high - low) / 8:
        text = (
            f"The {seen.images} images of 8 bits use values of {seen.low:g} to {seen.high:g} only, and look black: "
            f"set dataset.value_range: [0, {seen.high:g}] to see them"
        )
        yield Notice("value_range_dark", text)


def _automatic(seen: Seen) -> tuple[float, float]:
    kind = np.dtype(seen.type)
    if kind == np.uint8:
        return _BYTES
    if kind.kind == "b" or math.isnan(seen.low):
        return _UNIT
    if kind.kind == "u":
        bits = max(1, math.ceil(math.log2(seen.high + 1)))
        return 0.0, float(2**bits - 1)
    if kind.kind == "f" and seen.low >= 0:
        for top in (1.0, 255.0):
            if top / 2 < seen.high <= top * (1 + _FLOAT_SLACK):
                return 0.0, top
    if seen.low < seen.high:
        return seen.low, seen.high
    low = min(seen.low, _LARGEST)
    return low, max(low + 1, math.nextafter(low, math.inf))  # beyond 2**53 the next float64 is more than 1 above

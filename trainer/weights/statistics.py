"""How the images of a source's network are normalised, by its own settings or by ImageNet's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD
from trainer.data.preprocessing import COLOUR_CHANNELS, EIGHT_BITS
from trainer.errors import WeightsRefused
from trainer.weights.source import CONFIG, PROCESSOR, Source

DEFAULT: Final = "ImageNet default"
BICUBIC: Final = 3
"""Pillow's number of the filter."""


class Statistics(NamedTuple):
    """Mean and deviation of each channel in 0..1, and the pixel values that are black and white."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    origin: str
    """``preprocessor_config.json``, ``pretrained_cfg`` or `DEFAULT`."""
    notes: tuple[str, ...] = ()


def of_processor(source: Source, channels: int) -> Statistics:
    """From ``preprocessor_config.json`` in the form of transformers."""
    settings = source.processor
    if settings is None:
        return imagenet(source, channels)
    mean, std = [0.0] * channels, [1.0] * channels
    if settings.get("do_normalize", True):
        if "image_mean" not in settings or "image_std" not in settings:
            return imagenet(source, channels)
        mean, std = settings["image_mean"], settings["image_std"]
    value_range = (0.0, 1.0)
    if settings.get("do_rescale", True):
        factor = settings.get("rescale_factor", 1 / 255)
        if not isinstance(factor, (int, float)) or not factor > 0:
            raise WeightsRefused(f"{PROCESSOR}: rescale_factor {factor!r} must be a number above 0")
        value_range = (0.0, float(f"{1 / factor:.12g}"))
    notes = _resizing(settings)
    return Statistics(*_checked(mean, std, channels, PROCESSOR), value_range, PROCESSOR, notes)


def of_timm(source: Source, settings: Mapping[str, Any], channels: int) -> Statistics:
    """From timm's ``pretrained_cfg``; folders exported from here also say which pixel values are black and white."""
    if settings.get("mean") is None or settings.get("std") is None:
        return imagenet(source, channels)
    low, high = (source.config or {}).get("rcmae", {}).get("value_range", EIGHT_BITS)
    crop, filter_name = settings.get("crop_pct", 1.0), settings.get("interpolation", "bicubic")
    notes: tuple[str, ...] = ()
    if crop != 1.0 or filter_name != "bicubic":
        told = f"The source's own preprocessing resizes with {filter_name} and crop_pct {crop}"
        notes = (f"{told}; here pictures are resized bicubically and only cropped to be square.",)
    place = f"{CONFIG}, pretrained_cfg"
    return Statistics(
        *_checked(settings["mean"], settings["std"], channels, place), (low, high), "pretrained_cfg", notes
    )


def imagenet(source: Source, channels: int) -> Statistics:
    """ImageNet's, which a note says; raises `WeightsRefused` unless the network sees three channels."""
    if channels != COLOUR_CHANNELS:
        raise WeightsRefused(
            f"{source.place}: does not say how its {channels} channels are normalised: add a {PROCESSOR} with "
            "image_mean and image_std, or for timm a pretrained_cfg with mean and std"
        )
    note = "The source does not say how images are normalised: ImageNet's mean and deviation were assumed."
    return Statistics(IMAGENET_MEAN, IMAGENET_STD, EIGHT_BITS, DEFAULT, (note,))


def _resizing(settings: Mapping[str, Any]) -> tuple[str, ...]:
    resample = settings.get("resample", 2)
    cropped = bool(settings.get("do_center_crop")) and "shortest_edge" in (settings.get("size") or {})
    if settings.get("do_resize", True) and (resample != BICUBIC or not cropped):
        told = (
            f"The source's own preprocessing fits pictures otherwise (resample {resample}, size {settings.get('size')})"
        )
        return (f"{told}; here they are resized bicubically and cropped to the centre.",)
    return ()


def _checked(mean: Any, std: Any, channels: int, place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for name, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, Sequence) and all(
            isinstance(value, (int, float)) and math.isfinite(value) for value in values
        )
        if not numbers or len(values) != channels or (name == "std" and min(values) <= 0):
            raise WeightsRefused(
                f"{place}: the {name} {values!r} must be {channels} numbers, one for each channel"
                f"{', above 0' if name == 'std' else ''}"
            )
    return tuple(map(float, mean)), tuple(map(float, std))

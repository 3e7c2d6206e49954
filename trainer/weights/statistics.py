"""How the images of a source's network are normalised, by its own settings or by ImageNet's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD
from trainer.data.preprocessing import COLOUR_CHANNELS, EIGHT_BITS, processor_settings, timm_settings
from trainer.errors import WeightsRefused
from trainer.spec.pretrain import ModelSpec
from trainer.weights.source import CONFIG, PROCESSOR, Source, section

DEFAULT: Final = "ImageNet default"
OTHERWISE: Final = "The source's own preprocessing fits pictures to the network's size in another way than is done here"


class Statistics(NamedTuple):
    """Mean and deviation of each channel in 0..1, and the pixel values that are black and white."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    origin: str
    """``preprocessor_config.json``, ``pretrained_cfg`` or `DEFAULT`."""
    notes: tuple[str, ...] = ()


def of_processor(source: Source, model: ModelSpec) -> Statistics:
    """From ``preprocessor_config.json`` in the form of transformers."""
    settings, channels = source.processor, model.in_chans
    if settings is None:
        return imagenet(source, channels)
    mean: Any = [0.0] * channels
    std: Any = [1.0] * channels
    if settings.get("do_normalize", True):
        if "image_mean" not in settings or "image_std" not in settings:
            return imagenet(source, channels)
        mean, std = settings["image_mean"], settings["image_std"]
    value_range = (0.0, 1.0)
    if settings.get("do_rescale", True):
        factor = settings.get("rescale_factor", 1 / 255)
        if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise WeightsRefused(f"{PROCESSOR}: rescale_factor {factor!r} must be a number above 0")
        value_range = (0.0, float(f"{1 / factor:.12g}"))
    mean, std = _checked(mean, std, channels, PROCESSOR)
    ours = processor_settings(channels, (model.height, model.width), mean, std)
    fitting = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
    notes = _fitted_otherwise({key: settings.get(key) for key in fitting}, ours)
    return Statistics(mean, std, value_range, PROCESSOR, notes)


def of_timm(source: Source, settings: Mapping[str, Any], model: ModelSpec) -> Statistics:
    """From timm's ``pretrained_cfg``; folders exported from here also say which pixel values are black and white."""
    if settings.get("mean") is None or settings.get("std") is None:
        return imagenet(source, model.in_chans)
    value_range = section(source.config or {}, "rcmae").get("value_range", EIGHT_BITS)
    low, high = _numbers(value_range, 2, f"{CONFIG}, rcmae: value_range")
    if not low < high:
        raise WeightsRefused(f"{CONFIG}, rcmae: value_range {value_range!r} must rise from black to white")
    mean, std = _checked(settings["mean"], settings["std"], model.in_chans, f"{CONFIG}, pretrained_cfg")
    ours = timm_settings((model.height, model.width))
    theirs = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}  # timm's defaults
    theirs |= {key: settings[key] for key in theirs if settings.get(key) is not None}
    return Statistics(mean, std, (low, high), "pretrained_cfg", _fitted_otherwise(theirs, ours))


def imagenet(source: Source, channels: int) -> Statistics:
    """ImageNet's, which a note says; raises `WeightsRefused` unless the network sees three channels."""
    if channels != COLOUR_CHANNELS:
        raise WeightsRefused(
            f"{source.place}: does not say how its images of {channels} channels are normalised: add a {PROCESSOR} "
            "with image_mean and image_std to a folder of transformers, or to one of timm a pretrained_cfg with mean "
            "and std"
        )
    note = "The source does not say how images are normalised: ImageNet's mean and deviation were assumed."
    return Statistics(IMAGENET_MEAN, IMAGENET_STD, EIGHT_BITS, DEFAULT, (note,))


def _fitted_otherwise(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, ...]:
    """A note if a source's settings are not those with which pictures are fitted to every network here."""
    differing = [f"{key} {value}" for key, value in theirs.items() if value != ours[key]]
    return (f"{OTHERWISE} ({', '.join(differing)}).",) if differing else ()


def _checked(mean: Any, std: Any, channels: int, place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    deviations = _numbers(std, channels, f"{place}: the deviation of each channel")
    if min(deviations) <= 0:
        raise WeightsRefused(f"{place}: the deviation of each channel must be above 0, not {std!r}")
    return _numbers(mean, channels, f"{place}: the mean of each channel"), deviations


def _numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    fitting = isinstance(values, (list, tuple)) and len(values) == count
    if not fitting or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise WeightsRefused(f"{what} must be {count} numbers, not {values!r}")
    return tuple(map(float, values))

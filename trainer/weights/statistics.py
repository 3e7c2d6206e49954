"""How the images of a source's network are normalised, by its own settings or by ImageNet's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD
from trainer.data.preprocessing import COLOUR_CHANNELS, EIGHT_BITS
from trainer.errors import WeightsRefused
from trainer.spec.pretrain import ModelSpec
from trainer.weights.fitting import UNSAID, Fitting, processor_fitting, timm_fitting
from trainer.weights.source import CONFIG, PROCESSOR, Source, section

DEFAULT: Final = "ImageNet default"


class Statistics(NamedTuple):
    """Mean and deviation of each channel in 0..1, and the pixel values that are black and white."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    origin: str
    """``preprocessor_config.json``, ``pretrained_cfg`` or `DEFAULT`."""
    fitting: Fitting
    note: str = ""
    """A sentence on what was assumed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was assumed, and on how the source fits pictures otherwise."""
        return tuple(filter(None, (self.note, self.fitting.note)))


def of_processor(source: Source, model: ModelSpec) -> Statistics:
    """From ``preprocessor_config.json`` in the form of transformers; raises `WeightsRefused` if it leaves something to
    the defaults of one of transformers' processors, which differ.
    """
    settings, channels = source.processor, model.in_chans
    if settings is None:
        return imagenet(source, channels)
    mean: Any = [0.0] * channels
    std: Any = [1.0] * channels
    if settings.get("do_normalize", True):
        missing = [name for name in ("image_mean", "image_std") if settings.get(name) is None]
        if missing:
            raise WeightsRefused(
                f"{PROCESSOR}: has no {' and no '.join(missing)}: add what the network was trained with (where they "
                "are missing, transformers' ViTImageProcessor takes 0.5 for each channel), or do_normalize false"
            )
        mean, std = settings["image_mean"], settings["image_std"]
    value_range = (0.0, 1.0)
    if settings.get("do_rescale", True):
        factor = settings.get("rescale_factor", 1 / 255)
        if not _is_number(factor) or not 0 < factor < math.inf:
            raise WeightsRefused(f"{PROCESSOR}: rescale_factor {factor!r} must be a number above 0")
        value_range = (0.0, float(f"{1 / factor:.12g}"))
        if settings.get("offset"):
            raise WeightsRefused(
                f"{PROCESSOR}: offset {settings['offset']!r}: values that are shifted cannot be imported"
            )
    mean, std = _checked(mean, std, channels, PROCESSOR)
    return Statistics(mean, std, value_range, PROCESSOR, processor_fitting(settings, model))


def of_timm(source: Source, settings: Mapping[str, Any], model: ModelSpec) -> Statistics:
    """From timm's ``pretrained_cfg``; folders exported from here also say which pixel values are black and white."""
    if settings.get("mean") is None or settings.get("std") is None:
        return imagenet(source, model.in_chans)._replace(fitting=timm_fitting(settings, model))
    value_range = section(source.config or {}, "rcmae").get("value_range", EIGHT_BITS)
    low, high = _numbers(value_range, 2, f"{CONFIG}, rcmae: value_range")
    if not low < high:
        raise WeightsRefused(f"{CONFIG}, rcmae: value_range {value_range!r} must rise from black to white")
    mean, std = _checked(settings["mean"], settings["std"], model.in_chans, f"{CONFIG}, pretrained_cfg")
    return Statistics(mean, std, (low, high), "pretrained_cfg", timm_fitting(settings, model))


def imagenet(source: Source, channels: int) -> Statistics:
    """ImageNet's, which a note says; raises `WeightsRefused` unless the network sees three channels."""
    if channels != COLOUR_CHANNELS:
        raise WeightsRefused(
            f"{source.place}: does not say how its images of {channels} channels are normalised: add a {PROCESSOR} "
            "with image_mean and image_std to a folder of transformers, or to one of timm a pretrained_cfg with mean "
            "and std"
        )
    note = "The source does not say how images are normalised: ImageNet's mean and deviation were assumed."
    return Statistics(IMAGENET_MEAN, IMAGENET_STD, EIGHT_BITS, DEFAULT, Fitting(UNSAID, UNSAID), note)


def _checked(mean: Any, std: Any, channels: int, place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    deviations = _numbers(std, channels, f"{place}: the deviation of each channel")
    if min(deviations) <= 0:
        raise WeightsRefused(f"{place}: the deviation of each channel must be above 0, not {std!r}")
    return _numbers(mean, channels, f"{place}: the mean of each channel"), deviations


def _numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    complete = isinstance(values, (list, tuple)) and len(values) == count
    if not complete or not all(_is_number(value) and math.isfinite(value) for value in values):
        raise WeightsRefused(f"{what} must be {count} numbers, not {values!r}")
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""How a source fits pictures to its network's size, in words, where that is not how it is done here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from PIL import Image

from trainer.data.preprocessing import processor_settings
from trainer.spec.pretrain import ModelSpec

UNSAID: Final = "The source does not say how it fits pictures."
MAKERS: Final = "from those that its makers' own code gives"
FILTERS: Final = {
    "nearest": "by the nearest pixel", "lanczos": "by Lanczos's filter", "bilinear": "bilinearly",
    "bicubic": "bicubically", "box": "by a box filter", "hamming": "by Hamming's filter",
}  # fmt: skip
"""By the names of Pillow and timm."""
BY_SHORTER_SIDE: Final = ("Bit", "CLIP", "ConvNext")
"""Beginnings of the names of transformers' processors to which one number is the shorter side; to others it is both."""
Size = tuple[int, int]
"""Height and width."""


class Fit(NamedTuple):
    """Resizing, then cropping."""

    squashed: Size | None = None
    """The size to which pictures are resized, whatever their proportions."""
    shorter: int | None = None
    """The length of the shorter side to which they are resized with their proportions."""
    crop: Size | None = None
    """The part in the centre that is cropped."""
    filter: str | None = None
    """One of `FILTERS`, if the source names one that is known."""


class Fitting(NamedTuple):
    """How a source fits pictures."""

    sentence: str = ""
    """What the source does; empty if it is done here as well."""
    note: str = ""
    """The same with what is done here, and what follows; empty if nothing does."""


def processor_fitting(settings: Mapping[str, Any], model: ModelSpec) -> Fitting:
    """By a ``preprocessor_config.json`` of transformers."""
    theirs = _fit(settings)
    return Fitting(UNSAID, UNSAID) if theirs is None else _compared(theirs, model)


def timm_fitting(settings: Mapping[str, Any], model: ModelSpec) -> Fitting:
    """By timm's ``pretrained_cfg``, with timm's defaults for what it lacks unless it lacks everything."""
    size = (model.height, model.width)
    given = {key: settings[key] for key in ("interpolation", "crop_pct", "crop_mode") if settings.get(key) is not None}
    stated = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"} | given
    share, mode, named = stated["crop_pct"], stated["crop_mode"], str(stated["interpolation"])
    if not given or isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
        return Fitting(UNSAID, UNSAID)
    resized = (math.floor(size[0] / share), math.floor(size[1] / share))
    known = named if named in FILTERS else None
    detail = f" (crop_pct {share:g})" if share != 1 else ""
    if mode == "squash":
        return _compared(Fit(squashed=resized, crop=size, filter=known), model, detail)
    if mode == "center" and size[0] == size[1]:
        return _compared(Fit(shorter=resized[0], crop=size, filter=known), model, detail)
    sentence = f"The source fits pictures to {_shown(size)} pixels by timm's crop_mode {mode}{detail}{_by(known)}."
    return Fitting(sentence, _told(sentence, model, f"Features differ {MAKERS}."))


def _fit(settings: Mapping[str, Any]) -> Fit | None:
    """What transformers does by these settings; None if they do not say."""
    crop = _size(settings.get("crop_size")) if settings.get("do_center_crop") else None
    if settings.get("do_center_crop") and crop is None:
        return None
    if not settings.get("do_resize", True):
        return Fit(crop=crop)
    resample = settings.get("resample")
    known = [each.name.lower() for each in Image.Resampling if type(resample) is int and each == resample]
    size, named = settings.get("size"), settings.get("image_processor_type", settings.get("feature_extractor_type"))
    shorter = size.get("shortest_edge") if isinstance(size, dict) else None
    if type(size) is int and str(named).startswith(BY_SHORTER_SIDE):
        shorter = size
    squashed = _size(size) if shorter is None else None
    if squashed is None and type(shorter) is not int:
        return None
    return Fit(squashed, shorter, crop, known[0] if known else None)


def _size(value: Any) -> Size | None:
    height, width = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
    return (height, width) if type(height) is int and type(width) is int else None


def _compared(theirs: Fit, model: ModelSpec, detail: str = "") -> Fitting:
    size, square = (model.height, model.width), model.height == model.width
    theirs, ours = _shortened(theirs), _shortened(_fit(processor_settings(model.in_chans, size, (), ())) or Fit())
    if theirs == ours:
        return Fitting()
    differ = "differ" if theirs.filter else "may differ"
    if theirs._replace(filter=ours.filter) == ours:
        follows = f"Features {differ} slightly {MAKERS}."
    elif square and theirs._replace(filter=None) == Fit(squashed=size):
        others = "" if theirs.filter == ours.filter else f", and those of others {differ} slightly"
        follows = f"Features of pictures that are not square differ {MAKERS}{others}."
    else:
        follows = f"Features differ {MAKERS}."
    sentence = _sentence(theirs, detail)
    return Fitting(sentence, _told(sentence, model, follows))


def _shortened(fit: Fit) -> Fit:
    """Without a crop that changes nothing."""
    return fit._replace(crop=None) if fit.squashed is not None and fit.crop == fit.squashed else fit


def _sentence(fit: Fit, detail: str) -> str:
    crop = f"crops the central {_shown(fit.crop)}" if fit.crop else ""
    if fit.squashed is None and fit.shorter is None:
        return f"The source {crop} without resizing." if crop else "The source does not resize pictures."
    resized = (
        f"squashes pictures to {_shown(fit.squashed)} pixels"
        if fit.squashed
        else f"scales the shorter side to {fit.shorter} pixels"
    )
    separator = (", and " if fit.filter else " and ") if crop else ""
    return f"The source {resized}{detail}{_by(fit.filter)}{separator}{crop}."


def _told(sentence: str, model: ModelSpec, follows: str) -> str:
    height, width = model.height, model.width
    here = (
        f"Here their shorter side becomes {height} pixels, bicubically, and the centre is cropped."
        if height == width
        else f"Here they are squashed to {_shown((height, width))} pixels, bicubically."
    )
    return f"{sentence} {here} {follows}"


def _by(named: str | None) -> str:
    return f", {FILTERS[named]}" if named else ""


def _shown(size: Size) -> str:
    return f"{size[0]} x {size[1]}"

"""Code and words for the model card: how a picture, or another image, becomes a backbone's input."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trainer.data.preprocessing import EIGHT_BITS
from trainer.spec.cluster import plural
from trainer.spec.pretrain import ModelSpec

MODES: Final = {1: "L", 3: "RGB"}
"""Pillow's modes of the pictures that need no code of their own, by their number of channels."""
QUOTED_PICTURE, QUOTED_ARRAY = '"photo.jpg"', '"image.npy"'
"""The files in the code."""


@dataclass(frozen=True)
class Subject:
    """The backbone that the code loads, and its input."""

    name: str
    formats: tuple[str, ...]
    model: ModelSpec
    mask_ratio: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] = field(default=EIGHT_BITS)
    imported: bool = False
    """Whether others have trained it, so that less is known of it."""
    fitting: str = ""
    """A sentence on how its makers' own code fits pictures otherwise, if it does."""

    @property
    def mode(self) -> str | None:
        """Pillow's mode of the input; None if image processors cannot prepare it, so that the code does it itself."""
        return MODES.get(self.model.in_chans) if self.value_range == EIGHT_BITS else None

    @property
    def square(self) -> bool:
        """Whether the input is square: pictures are then cropped, and otherwise squeezed."""
        return self.model.height == self.model.width

    @property
    def shape(self) -> str:
        """The shape of the tokens of one image, as a comment."""
        return f"(1, {1 + self.model.patches}, {self.model.embed_dim}): class token first, then patch by patch"


# --- words -----------------------------------------------------------------------------------------------------------


def steps(subject: Subject) -> list[str]:
    """What happens to an image before the network sees it, in every format alike."""
    height, width = subject.model.height, subject.model.width
    low, high = subject.value_range
    upright = "Turn the picture upright if its EXIF data says so."
    opened = {
        "RGB": [upright, "Convert it to RGB: grey becomes three equal channels, and transparency is dropped."],
        "L": [upright, "Convert it to one grey channel."],
        None: [f"Read it as an array of {plural(subject.model.in_chans, 'channel')}, without converting its values."],
    }[subject.mode]
    bicubically = "Resize it bicubically, with antialiasing,"
    size = (
        [
            f"{bicubically} until its shorter side has {height} pixels; keep its proportions.",
            f"Crop the central {height} x {width} pixels.",
        ]
        if subject.square
        else [f"{bicubically} to {height} x {width} pixels (height x width), whatever its proportions."]
    )
    scale = f"divide by {high:.9g}" if low == 0 else f"subtract {low:.9g} and divide by {high - low:.9g}"
    return [
        *opened,
        *size,
        f"Scale its values from {low:.9g}..{high:.9g} to 0..1: {scale}.",
        f"{_each(subject)} subtract the mean {_short(subject.mean)} and divide by the deviation {_short(subject.std)}.",
    ]


def _each(subject: Subject) -> str:
    channels = subject.model.in_chans
    return "Then" if channels == 1 else f"In each of the {plural(channels, 'channel')},"


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


# --- code ------------------------------------------------------------------------------------------------------------


def imports(subject: Subject, *others: str, numpy: bool = False) -> str:
    """Sorted imports: ``others``, and what opens an image. ``numpy`` says whether other code needs numpy."""
    lines = [*others, *(["from PIL import Image, ImageOps"] if subject.mode else [])]
    if numpy or subject.mode is None:
        lines.append("import numpy")
    return "\n".join(sorted(lines, key=lambda line: (line.startswith("from"), line.lower())))


def picture(subject: Subject, file: str | None = None) -> str:
    """An expression for the picture in a file."""
    return f'ImageOps.exif_transpose(Image.open({file or QUOTED_PICTURE})).convert("{subject.mode}")'


def by_processor(subject: Subject, file: str | None = None) -> str:
    """Code for transformers: ``processor`` turns an image into ``pixels``, where it can."""
    if subject.mode is None:
        return by_hand(subject, file)
    image = f"image = {picture(subject, file)}"
    if subject.mode == "L":
        image += "\nimage = numpy.asarray(image)[None]  # (1, height, width): not every version takes a grey picture"
    return f'{image}\npixels = processor(image, return_tensors="pt")["pixel_values"]'


def by_transform(subject: Subject, file: str | None = None) -> str:
    """Code for timm: ``transform`` turns an image into ``pixels``, where it can."""
    if subject.mode is None:
        return by_hand(subject, file)
    return f"image = {picture(subject, file)}\npixels = transform(image)[None]"


def by_hand(subject: Subject, file: str | None = None, *, tensor: bool = True) -> str:
    """Code that prepares an image itself. ``pixels`` is a tensor, or an array for a library that takes arrays."""
    if subject.mode is None:
        return _array_by_hand(subject, file or QUOTED_ARRAY) + ("" if tensor else "\npixels = pixels.numpy()")
    height, width, channels = subject.model.height, subject.model.width, subject.model.in_chans
    lines = [f"image = {picture(subject, file)}"]
    if subject.square:
        lines += [
            f"size = [{height} * side // min(image.size) for side in image.size]",
            "image = image.resize(size, Image.Resampling.BICUBIC)",
            f"left, top = ((side - {height}) // 2 for side in size)",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    else:
        lines.append(f"image = image.resize(({width}, {height}), Image.Resampling.BICUBIC)")
    pixels = "((values - mean) / std).transpose(2, 0, 1)[None]"
    lines += [
        f"values = numpy.asarray(image, dtype=numpy.float32).reshape({height}, {width}, {channels}) / 255",
        f"mean = numpy.float32({numbers(subject.mean)})",
        f"std = numpy.float32({numbers(subject.std)})",
        f"pixels = torch.from_numpy({pixels})" if tensor else f"pixels = {pixels}",
    ]
    return "\n".join(lines)


def _array_by_hand(subject: Subject, file: str) -> str:
    model, (low, high) = subject.model, subject.value_range
    height, width = model.height, model.width
    lines = [
        f'image = torch.from_numpy(numpy.load({file}).astype("float32"))[None]  # (1, {model.in_chans}, height, width)',
    ]
    resize = 'image = torch.nn.functional.interpolate(image, {}, mode="bicubic", antialias=True)'
    if subject.square:
        lines += [
            f"size = [{height} * side // min(image.shape[2:]) for side in image.shape[2:]]",
            resize.format("size"),
            f"top, left = ((side - {height}) // 2 for side in size)",
            f"image = image[:, :, top : top + {height}, left : left + {width}]",
        ]
    else:
        lines.append(resize.format((height, width)))
    scaled = f"image.clamp({low:.9g}, {high:.9g})"
    scaled = f"{scaled} / {high:.9g}" if low == 0 else f"({scaled} - {low:.9g}) / {high - low:.9g}"
    lines += [
        f"mean = torch.tensor({numbers(subject.mean)}).view(-1, 1, 1)",
        f"std = torch.tensor({numbers(subject.std)}).view(-1, 1, 1)",
        f"pixels = ({scaled} - mean) / std",
    ]
    return "\n".join(lines)


def numbers(values: Sequence[float]) -> str:
    """A list, exact for 32 bits, in lines that fit on a page."""
    text = ", ".join(repr(float(f"{value:.9g}")) for value in values)
    if len(text) <= 60:
        return f"[{text}]"
    return "[\n" + textwrap.indent("\n".join(textwrap.wrap(text, 100)), "    ") + ",\n]"

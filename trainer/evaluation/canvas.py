"""What all pictures of an evaluation are drawn with: colours, text, images as tiles, PNG.

The font is Pillow's own, so that a picture looks the same on every machine. It has the characters of ASCII alone.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour: TypeAlias = tuple[int, int, int]
Array: TypeAlias = Tensor | NDArray[Any]

BACKGROUND: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (30, 30, 30)
PALE: Final[Colour] = (225, 225, 225)
RIGHT: Final[Colour] = (0, 114, 178)
"""Blue, and vermilion for what is wrong: people who confuse red and green tell them apart. Words say it too."""
WRONG: Final[Colour] = (213, 94, 0)
SHARES: Final[tuple[Colour, ...]] = (BACKGROUND, (107, 174, 214), (8, 48, 107))
"""Colours from 0 to 1, from white to dark blue."""
HEAT: Final[tuple[Colour, ...]] = ((44, 17, 95), (144, 38, 112), (221, 81, 58), (252, 165, 10), (252, 255, 164))
"""Colours from 0 to 1, from purple to yellow, growing brighter."""
GAP: Final = 8
LINE: Final = 15
"""Height of a line of text, in pixels."""
BAR: Final = 120
"""Width of a scale of colours, in pixels."""


def as_array(values: Array) -> NDArray[Any]:
    """Values as numpy's."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def checked_images(images: Array) -> NDArray[np.uint8]:
    """Images (n, C, H, W) as numpy's; raises `ValueError` if they are not uint8 of that shape, or none."""
    pixels = as_array(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or 0 in pixels.shape:
        raise ValueError(f"images are {pixels.dtype} of the shape {pixels.shape}: use uint8 (n, C, H, W), n from 1 on")
    return pixels


@lru_cache(maxsize=1)
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all text."""
    return ImageFont.load_default(size=12)


def text_width(text: str) -> int:
    """Width of a line of text, in pixels."""
    return int(np.ceil(font().getlength(text)))


def cut(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits into ``width`` pixels, with dots after it."""
    if text_width(text) <= width:
        return text
    while text and text_width(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def class_label(classes: Sequence[str], index: int) -> str:
    """A class's name without accents, or its number from 0 on where the font cannot show the name."""
    name = unicodedata.normalize("NFKD", " ".join(classes[index].split()))
    plain = "".join(letter for letter in name if not unicodedata.combining(letter))
    return plain if plain.isascii() and plain.isprintable() and plain else f"class {index}"


def sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture, and the pen that draws on it."""
    picture = Image.new("RGB", (width, height), BACKGROUND)
    return picture, ImageDraw.Draw(picture)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, fill: Colour = INK) -> None:
    """Write text whose upper left corner is at ``place`` (x, y)."""
    pen.multiline_text(place, text, fill=fill, font=font())


def write_upwards(picture: Image.Image, place: tuple[int, int], text: str) -> None:
    """Write a line of text from below upwards, beginning at ``place`` (x of its left edge, y of its lower edge)."""
    line, pen = sheet(max(1, text_width(text)), LINE)
    write(pen, (0, 0), text)
    turned = line.transpose(Image.Transpose.ROTATE_90)
    picture.paste(turned, (place[0], place[1] - turned.height))


def rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    """Pixels (H, W, C) as a picture: the first three channels, or of one or two the first as grey."""
    shown = np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0])
    return Image.fromarray(shown).convert("RGB")


def cell_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Size (height, width) at which images are shown: enlarged by a whole factor up to ``side``, or reduced to it.

    The longer side is at most ``side``, unless one pixel stands for less.
    """
    longer = max(height, width)
    if longer <= side:
        return height * (side // longer), width * (side // longer)
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


def tile(image: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """An image (C, H, W) at the size (height, width); enlarged pixels stay squares."""
    picture = rgb(image.transpose(1, 2, 0))
    enlarged = size[0] >= picture.height
    return picture.resize(size[::-1], Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX)


def coloured(values: NDArray[Any], scale: tuple[Colour, ...]) -> NDArray[np.uint8]:
    """Values in 0..1 of any shape as colours (..., 3), linear between the scale's."""
    stops = np.linspace(0, 1, len(scale))
    bands = [np.interp(values, stops, [colour[band] for colour in scale]) for band in range(3)]
    colours: NDArray[np.uint8] = np.rint(np.stack(bands, axis=-1)).astype(np.uint8)
    return colours


def draw_scale(picture: Image.Image, place: tuple[int, int], scale: tuple[Colour, ...], ends: tuple[str, str]) -> int:
    """Draw a scale of colours at ``place`` (x, y) with a text at each end; returns the x where it ends."""
    pen, (x, y) = ImageDraw.Draw(picture), place
    write(pen, (x, y), ends[0])
    left = x + text_width(ends[0]) + GAP
    bar = coloured(np.linspace(0, 1, BAR)[None].repeat(LINE - 2, 0), scale)
    picture.paste(Image.fromarray(bar), (left, y + 1))
    pen.rectangle((left - 1, y, left + BAR, y + LINE - 1), outline=INK)
    write(pen, (left + BAR + GAP, y), ends[1])
    return left + BAR + GAP + text_width(ends[1])

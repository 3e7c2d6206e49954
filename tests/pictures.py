"""Twenty pictures of all shapes and modes, made of photographs, on which every way of preprocessing must agree."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

PHOTOS: Final = Path(__file__).parents[2] / "shared/data/photos"
SIDE: Final = 64
"""Of the network: pictures of 100 pixels by 100 and a margin are cropped by margins of every remainder."""


def write_pictures(folder: Path) -> list[str]:
    """Write the pictures into ``folder``; returns their names. Skips where the photographs are absent."""
    photos = _photos()
    sizes = [Image.open(io.BytesIO(photo)).size for photo in photos]
    wide, tall = sizes.index(max(sizes, key=lambda s: s[0] / s[1])), sizes.index(min(sizes, key=lambda s: s[0] / s[1]))
    large, small = (
        sizes.index(max(sizes, key=lambda s: s[0] * s[1])),
        sizes.index(min(sizes, key=lambda s: s[0] * s[1])),
    )
    grey = next(i for i, photo in enumerate(photos) if Image.open(io.BytesIO(photo)).mode == "L")
    as_they_are = {"wide": wide, "tall": tall, "large": large, "small": small, "grey": grey}
    for name, photo in as_they_are.items():
        (folder / f"{name}.jpg").write_bytes(photos[photo])
    source = Image.open(io.BytesIO(photos[large])).convert("RGB")
    for name, draw in _DRAWN.items():
        draw(source, folder / name)
    return sorted([*(f"{name}.jpg" for name in as_they_are), *_DRAWN])


def _photos() -> list[bytes]:
    if not PHOTOS.is_dir():
        pytest.skip(f"needs the photographs in {PHOTOS}")
    photos: list[bytes] = []
    for shard in sorted(PHOTOS.glob("*.tar")):
        with tarfile.open(shard) as tar:
            photos += [tar.extractfile(member).read() for member in tar]
    return photos


def _cut(source: Image.Image, width: int, height: int) -> Image.Image:
    return source.crop((100, 100, 100 + width, 100 + height))


def _saved(width: int, height: int, mode: str = "RGB", **options: object) -> Callable[[Image.Image, Path], None]:
    def draw(source: Image.Image, file: Path) -> None:
        _cut(source, width, height).convert(mode).save(file, **options)

    return draw


def _with_alpha(mode: str) -> Callable[[Image.Image, Path], None]:
    def draw(source: Image.Image, file: Path) -> None:
        image = _cut(source, 152, 110).convert(mode)
        image.putalpha(_cut(source, 260, 220).crop((108, 110, 260, 220)).convert("L"))
        image.save(file)

    return draw


def _partly_transparent(source: Image.Image, file: Path) -> None:
    image = _cut(source, 128, 100).convert("P")
    histogram = image.histogram()
    image.save(file, transparency=histogram.index(max(histogram)))


def _rotated(source: Image.Image, file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _cut(source, 190, 120).save(file, exif=exif, quality=90)


_DRAWN: Final[dict[str, Callable[[Image.Image, Path], None]]] = {
    "band.jpg": _saved(1404, 90, quality=85),
    "pole.png": _saved(40, 600),
    "tiny.png": _saved(20, 13),
    "exact.png": _saved(SIDE, SIDE),
    "margin-1.png": _saved(102, 100),
    "margin-2.png": _saved(100, 104),
    "margin-3.png": _saved(105, 100),
    "grey.png": _saved(130, 101, "L"),
    "one-bit.png": _saved(140, 97, "1"),
    "palette.png": _saved(101, 152, "P"),
    "palette-transparent.png": _partly_transparent,
    "grey-alpha.png": _with_alpha("L"),
    "alpha.png": _with_alpha("RGB"),
    "cmyk.jpg": _saved(172, 101, "CMYK", quality=90),
    "rotated.jpg": _rotated,
}

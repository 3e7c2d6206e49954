"""Images of more than eight bits, of floats, or of bands: 16-bit PNG and PPM, TIFF of all kinds, and `.npy` files.

Their values are read as the file stores them; `Scale` says what they become.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from trainer.data.unreadable import DAMAGE_ERRORS, MAX_BYTES, Unreadable, check_size
from trainer.spec.dataset import MAX_CHANNELS

Values = NDArray[np.generic]
"""(H, W, C), of the type that the file has."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY: Final = b"\x93NUMPY"
_PPM_HEADER: Final = re.compile(rb"P[2356]" + rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" * 3)
"""Width, height and the greatest value, with white space and comments between them."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
"""Photometric interpretations of a TIFF whose samples are used as they are."""
_COLOUR_MODELS: Final = {
    3: ("palette", 8), 5: ("CMYK", 16), 6: ("YCbCr", 8), 8: ("CIELAB", 8), 9: ("ICCLAB", 0), 10: ("ITULAB", 0),
}  # fmt: skip
"""Those whose samples must be converted to RGB, with the most bits of a sample that Pillow converts."""
_ALPHA: Final = (1, 2)
"""Kinds of an extra sample that are transparency; others may be anything, for example infrared."""
_PILLOW_SAMPLES: Final = 4


@dataclass(frozen=True)
class Deep:
    """An image as its file stores it."""

    format: str
    """`PNG`, `PPM`, `TIFF` or `NPY`."""
    values: Values
    """(H, W, C), not yet turned upright."""
    bands: int
    """Of one page."""
    colour: bool
    """Whether its bands are grey or RGB, with alpha or without, and may be converted to one another."""
    alpha: bool = False
    """Whether the last band is transparency."""
    pages: int = 1
    """Pages of a TIFF that has only one band in each: they may be bands too."""
    orientation: int = 1
    """As in EXIF."""


def read_deep(raw: bytes | memoryview, channels: int) -> Deep | None:
    """The values of an image that 8-bit readers would spoil; None for any other file.

    ``channels`` are those wanted: as many pages of a TIFF are its bands. Raises `Unreadable`.
    """
    start = bytes(raw[:8])
    with _damage_is_unreadable():
        if start == _PNG:
            return _read_png(raw) if len(raw) > 25 and raw[24] == 16 else None
        if start[:4] in _TIFF:
            return _read_tiff(raw, channels)
        if start[: len(_NPY)] == _NPY:
            return _read_npy(raw)
        if start[:1] == b"P":
            return _read_ppm(raw)
    return None


def read_stack(raw: bytes | memoryview) -> Values | None:
    """The values (H, W, pages) of a TIFF whose pages may be channels; None for any other. Raises `Unreadable`."""
    if bytes(raw[:4]) not in _TIFF:
        return None
    with _damage_is_unreadable(), tifffile.TiffFile(io.BytesIO(raw)) as tiff:
        pages = _stack(tiff)
        return _pages_values(raw, tiff, pages) if pages > 1 else None


@contextmanager
def _damage_is_unreadable() -> Iterator[None]:
    try:
        yield
    except Unreadable:
        raise
    except (*DAMAGE_ERRORS, tifffile.TiffFileError, cv2.error, MemoryError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _read_png(raw: bytes | memoryview) -> Deep:
    return _read_opencv(raw, "PNG", height=int.from_bytes(raw[20:24]), width=int.from_bytes(raw[16:20]))


def _read_ppm(raw: bytes | memoryview) -> Deep | None:
    """Pillow would stretch the values to 16 bits, or to 8 for colours."""
    header = _PPM_HEADER.match(raw)
    if not header:
        return None
    width, height, greatest = map(int, header.groups())
    return _read_opencv(raw, "PPM", height, width) if greatest > 255 else None


def _read_opencv(raw: bytes | memoryview, kind: str, height: int, width: int) -> Deep:
    """The values of an image of 16 bits that OpenCV reads as they are."""
    check_size(height, width, 8)
    with Image.open(io.BytesIO(raw), formats=(kind,)) as image:
        image.load()  # OpenCV would fill a truncated file up with black
        orientation = image.getexif().get(0x0112, 1)
    values = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise Unreadable(f"a {kind} of 16 bits that cannot be decoded")
    values = values.reshape(height, width, -1)
    bands = values.shape[2]
    if bands >= 3:
        values = values[:, :, [2, 1, 0, 3][:bands]]
    return Deep(kind, values, bands, colour=True, alpha=bands in (2, 4), orientation=orientation)


# --- TIFF -------------------------------------------------------------------------------------------------------------


def _read_tiff(raw: bytes | memoryview, channels: int) -> Deep | None:
    with tifffile.TiffFile(io.BytesIO(raw)) as tiff:
        page, pages = tiff.pages.first, _stack(tiff)
        wanted = pages if pages == channels else 1
        if wanted == 1 and _is_for_pillow(page):
            return None
        orientation = page.tags.get(274)
        return Deep(
            "TIFF",
            _pages_values(raw, tiff, wanted),
            page.samplesperpixel,
            colour=not _is_bands(page),
            alpha=_has_alpha(page),
            pages=pages,
            orientation=int(orientation.value) if orientation else 1,
        )


def _is_for_pillow(page: tifffile.TiffPage) -> bool:
    """Whether Pillow reads a page. Raises `Unreadable` for colours that nothing here can convert."""
    kind = _type(page)
    bits = 8 * kind.itemsize
    if page.photometric in _COLOUR_MODELS:
        model, most = _COLOUR_MODELS[page.photometric]
        if bits > most:
            raise Unreadable(f"a {model} TIFF of {bits} bits: convert it to RGB")
        return True
    if kind.kind not in "bu" or bits > 8 or page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return False
    # Pillow would drop a fourth sample that is no transparency.
    return not _is_bands(page) and (page.samplesperpixel in (1, 3) or _has_alpha(page))


def _type(page: tifffile.TiffPage) -> np.dtype[np.generic]:
    if page.dtype is None or page.dtype.kind not in "buif":
        raise Unreadable(f"a TIFF whose values are {page.dtype or 'of a kind that cannot be read'}")
    return page.dtype


def _is_bands(page: tifffile.TiffPage) -> bool:
    """Whether a page's samples are bands rather than grey or RGB, with alpha or without."""
    if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        return page.samplesperpixel > (2 if _has_alpha(page) else 1)
    return page.samplesperpixel > _PILLOW_SAMPLES


def _has_alpha(page: tifffile.TiffPage) -> bool:
    return page.samplesperpixel in (2, 4) and len(page.extrasamples) == 1 and page.extrasamples[0] in _ALPHA


def _stack(tiff: tifffile.TiffFile) -> int:
    """The number of pages of a TIFF if all are alike, grey and small enough to be read together, or else 1."""
    pages = tiff.pages
    first = pages.first
    grey = first.samplesperpixel == 1 and first.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if not grey or not 1 < len(pages) <= MAX_CHANNELS:
        return 1
    if first.imagelength * first.imagewidth * _type(first).itemsize * len(pages) > MAX_BYTES:
        return 1
    alike = all(page.shape == first.shape and page.dtype == first.dtype for page in pages)
    return len(pages) if alike else 1


def _pages_values(raw: bytes | memoryview, tiff: tifffile.TiffFile, count: int) -> Values:
    """The values (H, W, C) of the first pages, one after the other."""
    first = tiff.pages.first
    check_size(first.imagelength, first.imagewidth, first.samplesperpixel * _type(first).itemsize * count)
    if first.samplesperpixel > MAX_CHANNELS:
        raise Unreadable(f"a TIFF of {first.samplesperpixel} bands; at most {MAX_CHANNELS} can be read")
    pages = [tiff.pages[number].aspage() for number in range(count)]
    for page in pages:
        if any(start + size > len(raw) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise Unreadable("truncated: its data end before the image does")
    return np.concatenate([_page_values(page) for page in pages], axis=2)


def _page_values(page: tifffile.TiffPage) -> Values:
    """A page's values (H, W, C); those of fewer than eight bits as 0..255, as Pillow has them."""
    values, top = page.asarray(maxworkers=1), 2**page.bitspersample - 1
    if values.dtype.kind in "bu":
        if page.bitspersample < 8:
            values = np.rint(values * (255 / top)).astype(np.uint8)
            top = 255
        if page.photometric == _WHITE_IS_ZERO:
            values = (top - values).astype(values.dtype)
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3 and page.axes.startswith("S"):
        return np.moveaxis(values, 0, 2)
    if values.ndim == 3 and page.axes.endswith("S"):
        return values
    raise Unreadable(f"a TIFF whose axes are {page.axes}; images of height, width and bands can be read")


# --- arrays -----------------------------------------------------------------------------------------------------------


def _read_npy(raw: bytes | memoryview) -> Deep:
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read_header(file)
    if kind.kind not in "buif":
        raise Unreadable(f"an array of {kind}; numbers are needed")
    if len(shape) not in (2, 3) or 0 in shape:
        raise Unreadable(f"an array of shape {shape}; (height, width) or (height, width, bands) is needed")
    first = len(shape) == 3 and _bands_are_first(shape)
    height, width = (shape[1], shape[2]) if first else (shape[0], shape[1])
    bands = 1 if len(shape) == 2 else shape[0] if first else shape[2]
    check_size(height, width, bands * kind.itemsize)
    if bands > MAX_CHANNELS:
        raise Unreadable(f"an array of {bands} bands; at most {MAX_CHANNELS} can be read")
    data = raw[file.tell() :]
    if len(data) != height * width * bands * kind.itemsize:
        raise Unreadable(f"truncated: {len(data)} bytes for an array of shape {shape} and type {kind}")
    values = np.frombuffer(data, dtype=kind).reshape(shape, order="F" if fortran else "C")
    values = values.astype(kind.newbyteorder("="), copy=False)
    values = np.moveaxis(values, 0, 2) if first else values
    return Deep("NPY", values.reshape(height, width, bands), bands, colour=bands in (1, 3, 4))


def _bands_are_first(shape: tuple[int, int, int]) -> bool:
    """Whether an array (bands, H, W) has this shape, rather than (H, W, bands).

    Two equal neighbours are height and width; or else the bands are fewer than the pixels of a side.
    """
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return middle == last
    return first < last

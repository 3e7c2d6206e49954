"""Images of more than eight bits, of floats, or of bands: 16-bit PNG, TIFF of all kinds, and `.npy` files.

Their values are read as the file stores them; `Scale` says what they become.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from trainer.data.unreadable import DAMAGE_ERRORS, Unreadable, check_size
from trainer.spec.dataset import MAX_CHANNELS

Values = NDArray[np.generic]
"""(H, W, C), of the type that the file has."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY: Final = b"\x93NUMPY"
_PILLOW_PHOTOMETRICS: Final = (0, 1, 2, 3, 5, 6)
"""White is zero, black is zero, RGB, palette, CMYK, YCbCr."""
_PILLOW_SAMPLES: Final = 4


@dataclass(frozen=True)
class Deep:
    """An image as its file stores it."""

    format: str
    """`PNG`, `TIFF` or `NPY`."""
    values: Values
    """(H, W, C), not yet turned upright."""
    bands: int
    """Of one page."""
    colour: bool
    """Whether its one, three or four bands are grey, RGB or RGBA, and may be converted to one another."""
    pages: int = 1
    """Pages of a TIFF that has only one band in each: they may be bands too."""
    orientation: int = 1
    """As in EXIF."""


def read_deep(raw: bytes | memoryview, channels: int | None = None) -> Deep | None:
    """The values of an image that 8-bit readers would spoil; None for any other file.

    ``channels`` are those wanted: as many pages of a TIFF are its bands. Raises `Unreadable`.
    """
    start = bytes(raw[:8])
    try:
        if start == _PNG:
            return _read_png(raw) if len(raw) > 25 and raw[24] == 16 else None
        if start[:4] in _TIFF:
            return _read_tiff(raw, channels)
        if start[: len(_NPY)] == _NPY:
            return _read_npy(raw)
    except Unreadable:
        raise
    except (*DAMAGE_ERRORS, tifffile.TiffFileError, MemoryError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    return None


def _read_png(raw: bytes | memoryview) -> Deep:
    width, height = int.from_bytes(raw[16:20]), int.from_bytes(raw[20:24])
    check_size(height, width, 8)
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        image.load()  # OpenCV would fill a truncated file up with black
        orientation = image.getexif().get(0x0112, 1)
    values = cv2.imdecode(np.frombuffer(raw, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise Unreadable("a PNG of 16 bits that cannot be decoded")
    values = values.reshape(height, width, -1)
    if values.shape[2] >= 3:
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    return Deep("PNG", values, values.shape[2], colour=True, orientation=orientation)


def _read_tiff(raw: bytes | memoryview, channels: int | None) -> Deep | None:
    with tifffile.TiffFile(io.BytesIO(raw)) as tiff:
        page = tiff.pages.first
        if page.dtype is None or page.dtype.kind not in "buif":
            raise Unreadable(f"a TIFF whose values are {page.dtype or 'of a kind that cannot be read'}")
        pages = _stack(tiff)
        wanted = pages if channels is None or pages == channels else 1
        ordinary = page.dtype in {np.dtype(np.uint8), np.dtype(np.bool_)} and page.samplesperpixel <= _PILLOW_SAMPLES
        if ordinary and wanted == 1 and page.photometric in _PILLOW_PHOTOMETRICS and not _is_bands(page):
            return None
        check_size(page.imagelength, page.imagewidth, page.samplesperpixel * page.dtype.itemsize * wanted)
        if page.samplesperpixel > MAX_CHANNELS:
            raise Unreadable(f"a TIFF of {page.samplesperpixel} bands; at most {MAX_CHANNELS} can be read")
        if any(start + size > len(raw) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise Unreadable("truncated: its data end before the image does")
        read = [_page_values(tiff.pages[number].aspage()) for number in range(wanted)]
        orientation = page.tags.get(274)
    return Deep(
        "TIFF",
        np.concatenate(read, axis=2),
        page.samplesperpixel,
        colour=not _is_bands(page),
        pages=pages,
        orientation=int(orientation.value) if orientation else 1,
    )


def _is_bands(page: tifffile.TiffPage) -> bool:
    """Whether a page's samples are bands rather than grey, RGB or RGBA."""
    rgb = page.photometric not in (0, 1)
    return page.samplesperpixel > (_PILLOW_SAMPLES if rgb else 1)


def _stack(tiff: tifffile.TiffFile) -> int:
    """The number of pages of a TIFF if all are alike and of one sample, or else 1."""
    pages = tiff.pages
    first = pages.first
    if first.samplesperpixel != 1 or not 1 < len(pages) <= MAX_CHANNELS:
        return 1
    alike = all(page.shape == first.shape and page.dtype == first.dtype for page in pages)
    return len(pages) if alike else 1


def _page_values(page: tifffile.TiffPage) -> Values:
    """A page's values (H, W, C)."""
    values = page.asarray(maxworkers=1)
    if page.photometric == 0 and values.dtype.kind in "bu":  # white is zero
        values = ~values if values.dtype.kind == "b" else (2**page.bitspersample - 1 - values).astype(values.dtype)
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3 and page.axes.startswith("S"):
        return np.moveaxis(values, 0, 2)
    if values.ndim == 3 and page.axes.endswith("S"):
        return values
    raise Unreadable(f"a TIFF whose axes are {page.axes}; images of height, width and bands can be read")


def _read_npy(raw: bytes | memoryview) -> Deep:
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read_header(file)
    if kind.kind not in "buif":
        raise Unreadable(f"an array of {kind}; numbers are needed")
    if len(shape) not in (2, 3) or 0 in shape:
        raise Unreadable(f"an array of shape {shape}; (height, width) or (height, width, bands) is needed")
    first = len(shape) == 3 and shape[0] < shape[2]
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

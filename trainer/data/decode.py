"""Decoding: an image file of any common format to uint8 pixels with the wanted channels, whole or as a crop."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any, NamedTuple, TypeGuard

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""A larger image is treated as a decompression bomb: Pillow's own limit, applied to JPEG as well."""
MAX_SCANS = 100
"""Encoders write about ten. Each scan passes over the whole image: a small file with thousands would take hours."""
MAX_PIXELS_PER_BYTE = 1024
"""Of a JPEG, which spends at least one bit on 64 pixels, with some to spare: a damaged size is noticed at once."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Formats that Pillow may try. The others are rare for photographs, and some of their readers start programs."""
_JPEG_MAGIC = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_JPEG_COLOURS = {1: "GRAY", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = {"I", "I;16", "I;16B", "I;16L", "F"}
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_EIGHTHS = (1, 2, 4)
"""Scales, in eighths, at which a JPEG decodes faster than at full size: libjpeg-turbo vectorises no others."""
_SMOOTHED_FROM, _AVERAGED_FROM = 1.05, 2.5
"""Shrink factors of a side: from the first on it is smoothed before resizing, from the second on it is averaged."""
# EXIF orientation -> (mirror left to right, mirror top to bottom, transpose), in this order, to turn the image upright.
_TURNS = {
    1: (False, False, False),
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}
# Pillow's readers raise many kinds of errors for damaged files.
_DAMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error)

Image.init()
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this and refuses above twice as many
cv2.setNumThreads(1)  # the loader spreads images over the cores; more threads for each would only compete

Raw = bytes | memoryview | NDArray[np.uint8]
"""An encoded image file, or pixels (H, W, C) already decoded with the wanted channels."""


class Unreadable(ValueError):
    """An image that cannot be decoded, with the reason."""


def decode(raw: Raw, channels: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C) uint8, turned upright by the EXIF orientation, C-contiguous.

    Reads JPEG, PNG, WebP, BMP, TIFF, GIF and PPM, and the first frame or page of a file with several. Greyscale,
    palette, CMYK, alpha, 16-bit and float images are converted to ``channels``: a single channel is luma, transparency
    is dropped without blending, and the range of floats is the first of 0..1, 0..255 and 0..65535 that holds their
    maximum. Raises `Unreadable`, also for a truncated file, and for a decompression bomb before its memory is taken.
    """
    if isinstance(raw, np.ndarray):
        return np.ascontiguousarray(raw)
    header = _jpeg_header(raw) if is_jpeg(raw) else None
    if header is None:
        return _pillow_pixels(raw, channels, None)
    pixels = _jpeg_pixels(raw, channels)
    if pixels is None:
        return _pillow_pixels(raw, channels, header.orientation)
    return np.ascontiguousarray(_turn(pixels, header.orientation))


def decode_crop(
    raw: Raw,
    channels: int,
    shape: tuple[int, int],
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    flip: bool,
) -> NDArray[np.uint8]:
    """The box (left, top, right, bottom) of an image as pixels (h, w, C) of ``size`` (h, w), mirrored if ``flip``.

    ``shape`` (H, W) is that of the whole upright image; the box lies in it, in whole pixels. A JPEG much larger than
    the crop needs is decoded at a half, a quarter or an eighth of its size, with the box rounded to that scale's
    pixels. Raises `Unreadable`, also for an image of another shape.
    """
    pixels = None
    if is_jpeg(raw):
        pixels = _jpeg_crop(raw, channels, shape, box, size)
    if pixels is None:
        whole = decode(raw, channels)
        _check_shape((whole.shape[0], whole.shape[1]), shape)
        pixels = whole[box[1] : box[3], box[0] : box[2]]
    try:
        return _resize(pixels, size, flip)
    except cv2.error as error:
        raise Unreadable(f"cannot be resized from {pixels.shape} to {size}: {error.err}") from error


def decodes_whole(raw: Raw, shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether `decode_crop` returns the same for ``raw`` and for `decode`'s pixels of it, whatever the box.

    Such images may be kept decoded. ``shape`` (H, W) is the image's, ``size`` (h, w) the crop's.
    """
    return not is_jpeg(raw) or jpeg_decodes_whole(shape, size)


def jpeg_decodes_whole(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """`decodes_whole` of a JPEG: False if it may be decoded at a smaller scale for a crop."""
    # The largest box allows the smallest scale.
    return _scale((0, 0, shape[1], shape[0]), size) == 8


def is_jpeg(raw: Raw) -> TypeGuard[bytes | memoryview]:
    """Whether ``raw`` is an encoded JPEG file, by its first bytes."""
    return not isinstance(raw, np.ndarray) and bytes(raw[: len(_JPEG_MAGIC)]) == _JPEG_MAGIC


# --- JPEG -----------------------------------------------------------------------------------------------------------


class _Jpeg(NamedTuple):
    """What a JPEG's header says about the stored image: its size in pixels, and the EXIF orientation."""

    height: int
    width: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if _TURNS[self.orientation][2] else (self.height, self.width)


def _jpeg_header(raw: bytes | memoryview) -> _Jpeg | None:
    """The header; None if Pillow must decode the file, which is faulty or in colours that libjpeg-turbo cannot convert.

    Raises `Unreadable` for a decompression bomb and for a size that the file is too short for.
    """
    segments = _jpeg_segments(raw)
    if segments is None or segments.many_scans:
        scans = bytes(raw).count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise Unreadable(f"too many scans: {scans}, {MAX_SCANS} are allowed")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except (ValueError, LookupError):
        return None
    if height * width > MAX_PIXELS:
        raise Unreadable(f"too many pixels: {width} x {height}, {MAX_PIXELS} are allowed")
    if height * width > len(raw) * MAX_PIXELS_PER_BYTE:
        raise Unreadable(f"truncated: {len(raw)} bytes cannot hold {width} x {height} pixels")
    if segments is None or colours in ("CMYK", "YCCK"):
        return None
    return _Jpeg(height, width, segments.orientation)


class _Segments(NamedTuple):
    orientation: int
    many_scans: bool


def _jpeg_segments(raw: bytes | memoryview) -> _Segments | None:
    """Orientation and number of scans, read from the segments before the first scan; None if these are damaged."""
    at, orientation, components, progressive = 2, None, 0, False
    while at + 10 <= len(raw) and raw[at] == 0xFF:
        marker, length = raw[at + 1], (raw[at + 2] << 8) | raw[at + 3]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA:
            return _Segments(orientation or 1, progressive or raw[at + 4] < components)
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9:  # markers without a length, which must not stand here
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            components, progressive = raw[at + 9], marker & 3 == 2
        if marker == 0xE1 and orientation is None and bytes(raw[at + 4 : at + 10]) == b"Exif\0\0":
            orientation = _exif_orientation(bytes(raw[at + 10 : at + 2 + length]))
        at += 2 + length
    return None


def _jpeg_pixels(raw: bytes | memoryview, channels: int, least: tuple[int, int] = (0, 0)) -> NDArray[np.uint8] | None:
    """Stored pixels (H, W, C) at the smallest scale with at least the height and width ``least``; (0, 0) is full size.

    None if the file is faulty: Pillow decides which faults to forgive.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            raw, _JPEG_COLOURS[channels], min_height=least[0], min_width=least[1]
        )
    except ValueError:
        return None
    return pixels


def _jpeg_crop(
    raw: bytes | memoryview,
    channels: int,
    shape: tuple[int, int],
    box: tuple[int, int, int, int],
    size: tuple[int, int],
) -> NDArray[np.uint8] | None:
    """The upright box at the smallest fast scale that holds ``size``, not yet resized; None if Pillow must decode."""
    header = _jpeg_header(raw)
    if header is None:
        return None
    _check_shape(header.upright, shape)
    mirrored, upside, transposed = _TURNS[header.orientation]
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if transposed else box
    if mirrored:
        left, right = header.width - right, header.width - left
    if upside:
        top, bottom = header.height - bottom, header.height - top
    stored = (left, top, right, bottom)
    scale = _scale(stored, size[::-1] if transposed else size)
    least = (0, 0) if scale == 8 else (-(-header.height * scale // 8), -(-header.width * scale // 8))
    pixels = _jpeg_pixels(raw, channels, least)
    if pixels is None:
        return None
    left, top, right, bottom = _scaled(stored, scale)
    return _turn(pixels[top:bottom, left:right], header.orientation)


def _scaled(box: tuple[int, int, int, int], eighths: int) -> tuple[int, int, int, int]:
    """The box in the pixels of the scaled image, with its edges rounded to the nearest, halves up."""
    left, top, right, bottom = ((edge * eighths + 4) // 8 for edge in box)
    return left, top, right, bottom


def _scale(box: tuple[int, int, int, int], size: tuple[int, int]) -> int:
    """The smallest scale, in eighths, at which the box is at least ``size`` (h, w) large; 8 (full size) if none is."""
    for eighths in _EIGHTHS:
        left, top, right, bottom = _scaled(box, eighths)
        if bottom - top >= size[0] and right - left >= size[1]:
            return eighths
    return 8


def _exif_orientation(tiff: bytes) -> int:
    """Tag 274 of the first directory of a TIFF header; 1 (upright) if it is missing or invalid."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    entries = struct.unpack_from(order + "H", tiff, start)[0]
    for at in range(start + 2, min(start + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at)
        if tag == 0x0112:
            return value if kind == 3 and value in _TURNS else 1
    return 1


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Stored pixels (H, W, C) turned upright."""
    mirrored, upside, transposed = _TURNS[orientation]
    pixels = pixels[:: -1 if upside else 1, :: -1 if mirrored else 1]
    return pixels.transpose(1, 0, 2) if transposed else pixels


# --- everything else ------------------------------------------------------------------------------------------------


def _pillow_pixels(raw: bytes | memoryview, channels: int, orientation: int | None) -> NDArray[np.uint8]:
    """Upright pixels (H, W, C) of any file that Pillow can read; Pillow finds the orientation if it is None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata, which does not change the pixels
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                image.load()
                upright = ImageOps.exif_transpose(image) if orientation is None else image
                pixels = np.array(_convert(upright, MODES[channels]))
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"cannot identify the image format; supported formats are {', '.join(FORMATS)}") from error
    except _DAMAGE_ERRORS as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    pixels = pixels.reshape(pixels.shape[0], pixels.shape[1], channels)
    return np.ascontiguousarray(_turn(pixels, orientation or 1))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in _WIDE_MODES:
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
        top = next((top for top in tops if values.max(initial=0) <= top), tops[-1])
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    return image if image.mode == mode else image.convert(mode)


# --- crops ----------------------------------------------------------------------------------------------------------


def _check_shape(actual: tuple[int, int], expected: tuple[int, int]) -> None:
    if actual != tuple(expected):
        raise Unreadable(f"is {actual[1]} x {actual[0]} pixels, but {expected[1]} x {expected[0]} were expected")


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int], flip: bool) -> NDArray[np.uint8]:
    """Pixels (H, W, C) resized bicubically to ``size`` (h, w), without aliasing if they shrink."""
    out: NDArray[Any] = pixels if min(pixels.strides) > 0 else np.ascontiguousarray(pixels)
    (tall, wide, channels), (height, width) = out.shape, size
    shrink = (tall / height, wide / width)
    if max(shrink) >= _AVERAGED_FROM:
        out = cv2.resize(out, (min(width, wide), min(height, tall)), interpolation=cv2.INTER_AREA)
    elif max(shrink) > _SMOOTHED_FROM:
        out = cv2.sepFilter2D(out, -1, _smoothing(shrink[1]), _smoothing(shrink[0]))
    if out.shape[:2] != size:
        out = cv2.resize(out, (width, height), interpolation=cv2.INTER_CUBIC)
    if flip:
        out = cv2.flip(out, 1)
    return np.ascontiguousarray(out.reshape(height, width, channels))


def _smoothing(shrink: float) -> NDArray[np.float32]:
    """A low-pass filter of three taps for a line that is about to become ``shrink`` times shorter.

    Bicubic interpolation after it is closer to an antialiased bicubic filter than averaging over areas, and takes a
    third of the time. The weight is fitted to Pillow's filter on photographs.
    """
    excess = max(shrink - 1, 0.0)
    side = 0.3 * excess + 0.15 * excess * excess
    return np.array([side, 1, side], dtype=np.float32) / np.float32(1 + 2 * side)

"""Decoding JPEG files with libjpeg-turbo, whole or as a crop at the scale that the crop needs."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from trainer.data.orientation import TURNS, turned
from trainer.data.unreadable import Unreadable, check_shape, check_size

MAX_SCANS = 100
"""Encoders write about ten. Each scan passes over the whole image: a small file with thousands would take hours."""
MAX_PIXELS_PER_BYTE = 1024
"""Of a JPEG, which spends at least one bit on 64 pixels, with some to spare: a damaged size is noticed at once."""
_MAGIC = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""
_COLOURS = {1: "GRAY", 3: "RGB", 4: "RGBA"}
_EIGHTHS = (1, 2, 4)
"""Scales, in eighths, at which a JPEG decodes faster than at full size: libjpeg-turbo vectorises no others."""


def is_jpeg(raw: bytes | memoryview) -> bool:
    """Whether ``raw`` is an encoded JPEG file, by its first bytes."""
    return bytes(raw[: len(_MAGIC)]) == _MAGIC


def decodes_whole(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """False if a JPEG of ``shape`` (H, W) may be decoded at a smaller scale for a crop of ``size`` (h, w)."""
    # The largest box allows the smallest scale.
    return _scale((0, 0, shape[1], shape[0]), size) == 8


class Header(NamedTuple):
    """What a JPEG's header says about the stored image: its size in pixels, and the EXIF orientation."""

    height: int
    width: int
    channels: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if TURNS[self.orientation][2] else (self.height, self.width)


def read_header(raw: bytes | memoryview) -> Header | None:
    """The header; None if Pillow must decode the file, which is faulty or in colours that libjpeg-turbo cannot convert.

    Raises `Unreadable` for a decompression bomb and for a size that the file is too short for.
    """
    segments = _segments(raw)
    if segments is None or segments.many_scans:
        scans = bytes(raw).count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise Unreadable(f"too many scans: {scans}, {MAX_SCANS} are allowed")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except (ValueError, LookupError):
        return None
    check_size(height, width)
    if height * width > len(raw) * MAX_PIXELS_PER_BYTE:
        raise Unreadable(f"truncated: {len(raw)} bytes cannot hold {width} x {height} pixels")
    if segments is None or colours in ("CMYK", "YCCK"):
        return None
    return Header(height, width, 1 if colours == "Gray" else 3, segments.orientation)


class _Segments(NamedTuple):
    orientation: int
    many_scans: bool


def _segments(raw: bytes | memoryview) -> _Segments | None:
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


def read_pixels(raw: bytes | memoryview, channels: int, least: tuple[int, int] = (0, 0)) -> NDArray[np.uint8] | None:
    """Stored pixels (H, W, C) at the smallest scale with at least the height and width ``least``; (0, 0) is full size.

    None if the file is faulty: Pillow decides which faults to forgive.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            raw, _COLOURS[channels], min_height=least[0], min_width=least[1]
        )
    except ValueError:
        return None
    return pixels


def read_crop(
    raw: bytes | memoryview,
    channels: int,
    shape: tuple[int, int],
    box: tuple[int, int, int, int],
    size: tuple[int, int],
) -> NDArray[np.uint8] | None:
    """The upright box at the smallest fast scale that holds ``size``, not yet resized; None if Pillow must decode."""
    header = read_header(raw)
    if header is None:
        return None
    check_shape(header.upright, shape)
    mirrored, upside, transposed = TURNS[header.orientation]
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if transposed else box
    if mirrored:
        left, right = header.width - right, header.width - left
    if upside:
        top, bottom = header.height - bottom, header.height - top
    stored = (left, top, right, bottom)
    scale = _scale(stored, size[::-1] if transposed else size)
    least = (0, 0) if scale == 8 else (-(-header.height * scale // 8), -(-header.width * scale // 8))
    pixels = read_pixels(raw, channels, least)
    if pixels is None:
        return None
    left, top, right, bottom = _scaled(stored, scale)
    return turned(pixels[top:bottom, left:right], header.orientation)


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
            return value if kind == 3 and value in TURNS else 1
    return 1

"""Decoding: an image file of any common format to uint8 pixels with the wanted channels, whole or as a crop."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.data import jpeg
from trainer.data.deep import Deep, read_deep, read_stack
from trainer.data.orientation import turned
from trainer.data.resize import resize
from trainer.data.scale import Scale
from trainer.data.unreadable import DAMAGE_ERRORS, MAX_PIXELS, Unreadable, check_shape

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Formats that Pillow may try. The others are rare for photographs, and some of their readers start programs."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of bands."""
COLOURS = (1, 3, 4)
"""Numbers of channels that grey and colour images are converted to."""
_WIDE_MODES = {"I", "I;16", "I;16B", "I;16L", "F"}
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}

Image.init()
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this and refuses above twice as many

Raw = bytes | memoryview | NDArray[np.uint8]
"""An encoded image file, or pixels (H, W, C) already decoded with the wanted channels."""

AS_STORED = Scale()
"""The scale by which the full range of a type is that of the pixels."""


def decode(raw: Raw, channels: int, scale: Scale = AS_STORED, *, luma_as_stored: bool = True) -> NDArray[np.uint8]:
    """Pixels (H, W, C) uint8, turned upright by the EXIF orientation, C-contiguous.

    Reads JPEG, PNG, WebP, BMP, TIFF, GIF, PPM and `.npy`, and the first frame or page of a file with several; pages of
    one band each are the channels if there are as many. ``scale`` says which values become 0 and 255. Grey, palette,
    CMYK and RGB images, with alpha or without, are converted to 1, 3 or 4 ``channels``: a single channel is luma,
    transparency is dropped without blending. Other images need the right number of bands. The luma of a JPEG is taken
    as it is stored, or, without ``luma_as_stored``, computed from red, green and blue as other tools do, which takes
    longer and differs by some levels in saturated colours. Raises `Unreadable`, also for a truncated file, and for a
    decompression bomb before its memory is taken.
    """
    if isinstance(raw, np.ndarray):
        return np.ascontiguousarray(raw)
    if jpeg.is_jpeg(raw):
        header = jpeg.read_header(raw)
        if header is not None and channels not in COLOURS:
            raise _misfit("JPEG", header.channels, channels)
        stored = _jpeg_channels(channels if luma_as_stored else max(channels, 3), scale)
        pixels = jpeg.read_pixels(raw, stored) if header is not None else None
        if header is not None and pixels is not None:
            return _scaled(turned(pixels, header.orientation), channels, scale)
        # Pillow decides which faults to forgive, and converts other colours.
        return _pillow_pixels(raw, channels, scale, header.orientation if header else None)
    deep = read_deep(raw, channels)
    if deep is not None:
        return _deep_pixels(deep, channels, scale)
    return _pillow_pixels(raw, channels, scale, None)


def decode_crop(
    raw: Raw,
    channels: int,
    shape: tuple[int, int],
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    flip: bool,
    scale: Scale = AS_STORED,
) -> NDArray[np.uint8]:
    """The box (left, top, right, bottom) of an image as pixels (h, w, C) of ``size`` (h, w), mirrored if ``flip``.

    ``shape`` (H, W) is that of the whole upright image; the box lies in it, in whole pixels. A JPEG much larger than
    the crop needs is decoded at a half, a quarter or an eighth of its size, with the box rounded to that scale's
    pixels. Raises `Unreadable`, also for an image of another shape.
    """
    pixels = None
    if not isinstance(raw, np.ndarray) and channels in COLOURS and jpeg.is_jpeg(raw):
        pixels = jpeg.read_crop(raw, _jpeg_channels(channels, scale), shape, box, size)
        if pixels is not None:
            pixels = _scaled(pixels, channels, scale)
    if pixels is None:
        whole = decode(raw, channels, scale)
        check_shape((whole.shape[0], whole.shape[1]), shape)
        pixels = whole[box[1] : box[3], box[0] : box[2]]
    try:
        return resize(pixels, size, flip)
    except cv2.error as error:
        raise Unreadable(f"cannot be resized from {pixels.shape} to {size}: {error.err}") from error


def decodes_whole(raw: Raw, shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether `decode_crop` returns the same for ``raw`` and for `decode`'s pixels of it, whatever the box.

    Such images may be kept decoded. ``shape`` (H, W) is the image's, ``size`` (h, w) the crop's.
    """
    return isinstance(raw, np.ndarray) or not jpeg.is_jpeg(raw) or jpeg.decodes_whole(shape, size)


# --- what a file holds ------------------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What an image file holds."""

    format: str
    """For example `JPEG`."""
    height: int
    """Pixels, of the upright image."""
    width: int
    bands: int
    """Of one page."""
    pages: int
    """Pages of one band each, which may be channels; 1 for other files."""
    colour: bool
    """Whether the bands are grey, RGB or RGBA."""
    type: str
    """Of the values, for example `uint8`."""
    low: float
    """The least finite value, transparency left out; NaN if there is none."""
    high: float
    stack_low: float
    """Of all pages together."""
    stack_high: float


def fits_channels(
    bands: NDArray[np.uint8], pages: NDArray[np.uint8], colour: NDArray[np.bool_], channels: int
) -> NDArray[np.bool_]:
    """Whether `decode` can give images with these facts (n,) this many channels."""
    fits: NDArray[np.bool_] = (bands == channels) | ((pages > 1) & (pages == channels))
    return fits | colour if channels in COLOURS else fits


def examine(raw: Raw) -> Facts:
    """Decode an image whole to find out what it holds. Raises `Unreadable`, also for what `decode` cannot read."""
    if isinstance(raw, np.ndarray):
        return _facts(Deep("pixels", raw, raw.shape[2], colour=True))
    if jpeg.is_jpeg(raw):
        header = jpeg.read_header(raw)
        pixels = jpeg.read_pixels(raw, header.channels) if header is not None else None
        if header is not None and pixels is not None:
            return _facts(Deep("JPEG", pixels, header.channels, colour=True, orientation=header.orientation))
        return _facts(_read_pillow(raw))
    first = read_deep(raw, channels=1)
    return _facts(first or _read_pillow(raw), read_stack(raw))


def _read_pillow(raw: bytes | memoryview) -> Deep:
    """The values of a file that Pillow must read, turned upright."""
    image, kind = _open(raw, None)
    wide = _wide(image)
    values: NDArray[np.generic] = np.asarray(image.convert(_native_mode(image))) if wide is None else wide
    values = values.reshape(image.height, image.width, -1)
    bands = values.shape[2]
    return Deep(kind, values, bands, colour=True, alpha=bands in (2, 4))


def _facts(image: Deep, stack: NDArray[np.generic] | None = None) -> Facts:
    """What an image holds; ``stack`` (H, W, pages) are all its pages if these may be channels."""
    height, width = turned(image.values, image.orientation).shape[:2]
    low, high = _range(image.values[:, :, :-1] if image.alpha else image.values)
    stack_low, stack_high = (low, high) if stack is None else _range(stack)
    return Facts(
        image.format, height, width, image.bands, 1 if stack is None else stack.shape[2], image.colour,
        image.values.dtype.name, low, high, stack_low, stack_high,
    )  # fmt: skip


def _range(values: NDArray[np.generic]) -> tuple[float, float]:
    """The least and the greatest finite value; NaN if there is none."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))


def misfit_reason(facts: Facts, channels: int) -> str:
    """Why an image cannot have this many channels, in the words that `decode` uses."""
    return str(_misfit(facts.format, facts.bands, channels, facts.pages))


def _misfit(kind: str, bands: int, channels: int, pages: int = 1) -> Unreadable:
    what = f"{bands} bands" if bands > 1 else "1 band"
    return Unreadable(f"a {kind} of {what}{f' and {pages} pages' if pages > 1 else ''}; in_chans is {channels}")


# --- values to pixels -------------------------------------------------------------------------------------------------


def _scaled(values: NDArray[np.generic], channels: int, scale: Scale) -> NDArray[np.uint8]:
    """Values (H, W, C) of grey, RGB or RGBA as contiguous pixels with so many channels.

    They are scaled first: what lies outside the range must not count in the luma.
    """
    pixels = scale.to_bytes(values)
    if pixels.shape[2] != channels:
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
        pixels = np.asarray(image.convert(MODES[channels])).reshape(*pixels.shape[:2], channels)
    return np.ascontiguousarray(pixels)


def _jpeg_channels(channels: int, scale: Scale) -> int:
    """The channels that a JPEG is decoded with: those wanted, or all if they must be scaled before."""
    return channels if scale.keeps_bytes else 3


def _deep_pixels(deep: Deep, channels: int, scale: Scale) -> NDArray[np.uint8]:
    if deep.values.shape[2] != channels and not (deep.colour and channels in COLOURS):
        raise _misfit(deep.format, deep.bands, channels, deep.pages)
    return _scaled(turned(deep.values, deep.orientation), channels, scale)


# --- everything else --------------------------------------------------------------------------------------------------


def _pillow_pixels(raw: bytes | memoryview, channels: int, scale: Scale, orientation: int | None) -> NDArray[np.uint8]:
    """Upright pixels (H, W, C) of any file that Pillow can read; Pillow finds the orientation if it is None."""
    image, kind = _open(raw, orientation)
    wide = _wide(image)
    if wide is not None:
        values = turned(wide[:, :, None], orientation or 1)
        return _deep_pixels(Deep(kind, values, 1, colour=True), channels, scale)
    native = len(Image.new(_native_mode(image), (1, 1)).getbands())
    if channels not in (native, *COLOURS):
        raise _misfit(kind, native, channels)
    mode = MODES[channels] if scale.keeps_bytes else _native_mode(image)
    pixels = np.array(image if image.mode == mode else image.convert(mode)).reshape(image.height, image.width, -1)
    return _scaled(turned(pixels, orientation or 1), channels, scale)


def _open(raw: bytes | memoryview, orientation: int | None) -> tuple[Image.Image, str]:
    """The decoded image and its format; turned upright if ``orientation`` is None. Raises `Unreadable`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata, which does not change the pixels
            image = Image.open(io.BytesIO(raw), formats=FORMATS)
            image.load()
            kind = str(image.format)
            upright = ImageOps.exif_transpose(image) if orientation is None else image
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            if upright.mode in _PREMULTIPLIED:
                upright = upright.convert(_PREMULTIPLIED[upright.mode])
    except Image.DecompressionBombError as error:
        raise Unreadable(f"too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"cannot identify the image format; supported formats are {', '.join(FORMATS)}") from error
    except DAMAGE_ERRORS as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
    return upright, kind


def _wide(image: Image.Image) -> NDArray[np.generic] | None:
    """The values (H, W) of a grey image of more than eight bits; None for any other."""
    if image.mode not in _WIDE_MODES:
        return None
    values = np.asarray(image)
    return values if image.mode == "F" else values.astype(np.uint16)  # Pillow has 32-bit integers for 16-bit files


def _native_mode(image: Image.Image) -> str:
    """Pillow's mode with the bands that the file holds."""
    if image.mode in {"1", "L"}:
        return "L"
    return image.mode if image.mode in {"LA", "RGBA"} else "RGB"

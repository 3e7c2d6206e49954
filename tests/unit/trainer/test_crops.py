"""Crops straight out of image files: turned cameras, scales, caches, threads."""

import io
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import cv2
import numpy as np
import pytest
from image_files import CHANNELS, forgiven, jpeg, orientation, photograph, saved
from PIL import Image, ImageOps
from test_decode import GOOD, TURNED

from trainer.data.decode import decode, decode_crop, decodes_whole

# --- turned cameras -------------------------------------------------------------------------------------------------


@cache
def turned_jpeg(value: int, height: int = 433, width: int = 650) -> bytes:
    """Red grows to the right of the stored picture, green to its bottom. No side divides by 8."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 / width, rows * 255 / height, np.full((height, width), 60)], axis=2)
    return jpeg(Image.fromarray(pixels.astype(np.uint8)), exif=orientation(value))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("value", range(1, 9))
def test_a_turned_camera_is_turned_back(value, channels):
    data = turned_jpeg(value)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB" if channels > 1 else "L")
    pixels = decode(data, channels)
    expected = np.asarray(upright).reshape(*pixels.shape[:2], -1)
    assert np.abs(pixels[:, :, :3].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("size", [(37, 41), (120, 90), (200, 200)])
@pytest.mark.parametrize("value", range(1, 9))
def test_crops_of_turned_cameras_at_every_scale_lie_where_they_should(value, size):
    """Against the whole picture's crop: off by half a pixel of the scale, in the mean by less than a pixel."""
    data = turned_jpeg(value)
    whole = decode(data, 3)
    shape, rng, off = whole.shape[:2], np.random.default_rng(value), []
    for _ in range(40):
        tall, wide = (int(rng.integers(side // 2, side + 1)) for side in shape)
        top, left = int(rng.integers(shape[0] - tall + 1)), int(rng.integers(shape[1] - wide + 1))
        arguments = (3, shape, (left, top, left + wide, top + tall), size, bool(rng.integers(2)))
        difference = decode_crop(data, *arguments).astype(int) - decode_crop(whole, *arguments)
        assert np.abs(difference).max() <= 6  # half a pixel of an eighth is 4 of the file's, some 2.5 levels
        off.append(difference.mean(axis=(0, 1)))
    red, green, blue = np.mean(
        off, axis=0
    )  # blue is the same everywhere: what it is off by has nothing to do with place
    assert max(abs(red - blue), abs(green - blue)) < 0.4  # a pixel of the file


# --- crops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", ["JPEG", "JPEG turned", "JPEG with faults", "PNG", "WEBP"])
def test_images_that_decode_whole_give_the_same_crops_kept_decoded(kind, channels):
    picture = Image.fromarray(photograph(256, 341))
    options = {"exif": TURNED} if kind == "JPEG turned" else {}
    raw = saved(picture, kind.split(maxsplit=1)[0], **options)
    raw = forgiven(raw) if kind == "JPEG with faults" else raw
    whole = decode(raw, channels)
    shape, rng = whole.shape[:2], np.random.default_rng(0)
    sizes = [size for size in ((224, 224), (256, 341), (160, 300), (32, 32)) if decodes_whole(raw, shape, size)]
    assert (224, 224) in sizes  # packed images at short side 256 may be kept decoded
    for size, _ in product(sizes, range(8)):
        top, left = (int(rng.integers(0, side - 1)) for side in shape)
        box = (left, top, int(rng.integers(left + 1, shape[1] + 1)), int(rng.integers(top + 1, shape[0] + 1)))
        arguments = (channels, shape, box, size, bool(rng.integers(2)))
        np.testing.assert_array_equal(decode_crop(raw, *arguments), decode_crop(whole, *arguments))


def test_only_jpegs_much_larger_than_the_crop_are_not_decoded_whole():
    large, small = saved(photograph(500, 600), "JPEG"), saved(photograph(300, 400), "JPEG")
    assert not decodes_whole(large, (500, 600), (224, 224))
    assert decodes_whole(small, (300, 400), (224, 224))
    assert decodes_whole(saved(photograph(500, 600), "PNG"), (500, 600), (224, 224))
    assert decodes_whole(decode(large, 3), (500, 600), (224, 224))


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_crop_of_the_image_s_own_size_is_the_image(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, channels), dtype=np.uint8)
    arguments = (channels, (8, 10))
    np.testing.assert_array_equal(decode_crop(pixels, *arguments, (0, 0, 10, 8), (8, 10), flip=False), pixels)
    np.testing.assert_array_equal(decode_crop(pixels, *arguments, (0, 0, 10, 8), (8, 10), flip=True), pixels[:, ::-1])
    inner = decode_crop(pixels, *arguments, (2, 1, 6, 5), (4, 4), flip=False)
    np.testing.assert_array_equal(inner, pixels[1:5, 2:6])


def peak_ratio(one: np.ndarray, other: np.ndarray) -> float:
    """In decibels."""
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


@pytest.mark.parametrize("shrink", [0.6, 1.2, 1.5, 1.9, 2.3, 3.1, 6.0])
def test_resizing_is_close_to_an_antialiased_bicubic_filter(shrink):
    pixels = photograph(360, 360, seed=3)
    side = round(360 / shrink)
    seen = decode_crop(pixels, 3, (360, 360), (0, 0, 360, 360), (side, side), flip=False)
    expected = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    assert peak_ratio(seen, expected) > 38
    pointwise = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_CUBIC)
    assert shrink <= 1 or peak_ratio(seen, expected) > peak_ratio(pointwise, expected) + 1


@pytest.mark.parametrize("size", [(64, 8), (100, 8), (64, 40), (8, 8)])
def test_shrinking_does_not_alias(size):
    stripes = np.zeros((64, 64, 1), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = decode_crop(stripes, 1, (64, 64), (0, 0, 64, 64), size, flip=False)
    assert small.shape == (*size, 1)
    assert small[:, 2:-2].std() < 50  # of the stripes' 127
    assert abs(small.mean() - 127.5) < 3


def test_threads_get_what_one_thread_gets():
    files = [turned_jpeg(value) for value in (1, 6)] + [GOOD[kind][0]() for kind in ("PNG", "JPEG CMYK", "TIFF")]
    shapes = [decode(data, 3).shape[:2] for data in files]

    def crop(number: int) -> np.ndarray:
        data, (height, width) = files[number % len(files)], shapes[number % len(files)]
        return decode_crop(data, 3, (height, width), (0, 0, width, height // 2), (50, 60), flip=bool(number % 2))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(crop, range(200)))
    for number, seen in enumerate(together):
        np.testing.assert_array_equal(seen, crop(number))

"""Image files of every kind, odd ones and hostile ones.

`GOOD` and `REFUSED` are the table of what becomes of which file: ``pytest -v`` prints it.
"""

import io
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
import tifffile
from image_files import (
    BLUE,
    CHANNELS,
    GREEN,
    HEIGHT,
    RED,
    WIDTH,
    colours,
    deep_png,
    forgiven,
    gif,
    jpeg,
    lossless_webp,
    many_scans,
    orientation,
    patched,
    photograph,
    plain,
    png,
    png_header,
    ramp,
    saved,
    segment,
    sized,
    tiff,
    with_alpha,
    with_segment,
)
from PIL import Image

from trainer.data import decode as decoding
from trainer.data import unreadable
from trainer.data.decode import decode, decode_crop, decodes_whole, examine
from trainer.data.unreadable import Unreadable

# --- files that are read --------------------------------------------------------------------------------------------

RGB = np.asarray(colours())
GREY = np.asarray(colours().convert("L"))
DEEP = ramp() / 257
TURNED = orientation(6)
"""The camera was turned: show the picture a quarter clockwise."""


def a_palette_with_transparency() -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, WIDTH // 2, HEIGHT))
    return saved(image, "PNG", transparency=2)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    return np.concatenate([np.full((HEIGHT, WIDTH // 2, 3), colour) for colour in (left, right)], axis=1)


# kind -> (makes the file, the picture expected (H, W) or (H, W, 3), how far a pixel may be from it)
GOOD = {
    "PNG": (lambda: saved(colours(), "PNG"), RGB, 0),
    "PNG greyscale": (lambda: saved(colours().convert("L"), "PNG"), GREY, 0),
    "PNG greyscale with alpha": (lambda: saved(Image.new("LA", (5, 4), (90, 128)), "PNG"), np.full((4, 5), 90), 0),
    "PNG palette": (lambda: saved(colours().quantize(8), "PNG"), RGB, 0),
    "PNG palette with transparency": (a_palette_with_transparency, halves(BLUE, GREEN), 0),
    "PNG alpha": (lambda: saved(with_alpha(), "PNG"), RGB, 0),
    "PNG 16-bit greyscale": (lambda: saved(ramp().astype(np.uint16), "PNG"), DEEP, 1),
    "PNG 16-bit colours": (deep_png, DEEP, 1),
    "PNG one bit": (lambda: saved(np.eye(6, dtype=bool), "PNG"), np.eye(6) * 255, 0),
    "PNG turned": (lambda: saved(colours(), "PNG", exif=TURNED), np.rot90(RGB, -1), 0),
    "PNG animated: the first": (
        lambda: saved(colours(), "PNG", save_all=True, append_images=[plain(RED)]),
        RGB,
        0,
    ),
    "WebP": (lambda: saved(colours(), "WEBP", quality=100), RGB, 130),
    "WebP lossless": (lambda: saved(colours(), "WEBP", lossless=True), RGB, 0),
    "WebP alpha": (lambda: saved(with_alpha(), "WEBP", lossless=True, exact=True), RGB, 0),
    "WebP animated: the first": (
        lambda: saved(colours(), "WEBP", lossless=True, save_all=True, append_images=[plain(RED)] * 3),
        RGB,
        0,
    ),
    "BMP": (lambda: saved(colours(), "BMP"), RGB, 0),
    "BMP palette": (lambda: saved(colours().quantize(8), "BMP"), RGB, 0),
    "TIFF": (lambda: saved(colours(), "TIFF"), RGB, 0),
    "TIFF LZW": (lambda: saved(colours(), "TIFF", compression="tiff_lzw"), RGB, 0),
    "TIFF pages: the first": (lambda: saved(colours(), "TIFF", save_all=True, append_images=[plain(RED)]), RGB, 0),
    "TIFF pages without end": (lambda: tiff(8, 8, next_directory=72), np.arange(64).reshape(8, 8), 0),
    "TIFF CMYK": (lambda: saved(colours().convert("CMYK"), "TIFF"), RGB, 1),
    "TIFF fax": (lambda: saved(np.eye(6, dtype=bool), "TIFF", compression="group4"), np.eye(6) * 255, 0),
    "TIFF turned": (lambda: saved(colours(), "TIFF", tiffinfo={274: 6}), np.rot90(RGB, -1), 0),
    "TIFF 16-bit": (lambda: saved(ramp().astype(np.uint16), "TIFF"), DEEP, 1),
    "TIFF floats to 1": (lambda: saved((ramp() / 65535).astype(np.float32), "TIFF"), DEEP, 1),
    "TIFF floats, not numbers": (
        lambda: saved(np.array([[np.nan, -1, 0, 1]], dtype=np.float32), "TIFF"),
        np.array([[0, 0, 0, 255]]),
        0,
    ),
    "GIF": (lambda: saved(colours(), "GIF"), RGB, 0),
    "GIF animated: the first": (
        lambda: saved(colours(), "GIF", save_all=True, append_images=[plain(RED)] * 3, loop=0),
        RGB,
        0,
    ),
    "PPM": (lambda: saved(colours(), "PPM"), RGB, 0),
    "JPEG": (jpeg, RGB, 60),
    "JPEG of half the colour": (lambda: jpeg(subsampling=2), RGB, 130),
    "JPEG progressive": (lambda: jpeg(progressive=True), RGB, 60),
    "JPEG greyscale": (lambda: jpeg(colours().convert("L")), GREY, 30),
    "JPEG stored as RGB": (lambda: jpeg(keep_rgb=True), RGB, 60),
    "JPEG CMYK": (lambda: jpeg(colours().convert("CMYK")), RGB, 60),
    "JPEG turned": (lambda: jpeg(exif=TURNED), np.rot90(RGB, -1), 60),
    "JPEG with damaged EXIF": (lambda: with_segment(jpeg(), 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"), RGB, 60),
    "JPEG with EXIF cut short": (lambda: with_segment(jpeg(), 0xE1, b"Exif\0\0MM"), RGB, 60),
    "JPEG turned nine ways": (lambda: jpeg(exif=orientation(9)), RGB, 60),
    "JPEG, then rubbish": (lambda: jpeg() + b"rubbish" * 100, RGB, 60),
    "JPEG of faults that Pillow forgives": (forgiven, RGB, 60),
    "JPEG pages: the first": (lambda: saved(colours(), "MPO", save_all=True, append_images=[plain(RED)]), RGB, 130),
    "one pixel": (lambda: saved(plain(RED).crop((0, 0, 1, 1)), "PNG"), np.full((1, 1, 3), RED), 0),
    "JPEG of one pixel": (lambda: jpeg(plain(RED).crop((0, 0, 1, 1))), np.full((1, 1, 3), RED), 3),
    "a line of 70,000": (lambda: saved(np.full((1, 70_000), 7, dtype=np.uint8), "PNG"), np.full((1, 70_000), 7), 0),
}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.timeout(30)
def test_read(kind, channels):
    make, expected, tolerance = GOOD[kind]
    data = make()
    pixels = decode(data, channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == (*expected.shape[:2], channels)
    rgb = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2)
    seen = rgb.astype(float) if channels > 1 else rgb @ np.array([[0.299], [0.587], [0.114]])
    off = np.abs(pixels[:, :, :3] - seen)  # transparency is dropped, not blended
    assert off.max() <= tolerance + (channels == 1)
    assert off.mean() <= tolerance / 5 + 1
    np.testing.assert_array_equal(decode(memoryview(data), channels), pixels)
    # The same file as a crop: its shape, what cropping the whole gives, and again.
    shape = expected.shape[:2]
    box = (0, 0, max(1, shape[1] // 2), shape[0])
    crop = decode_crop(data, channels, shape, box, (6, 9), flip=True)
    assert crop.shape == (6, 9, channels)
    if decodes_whole(data, shape, (6, 9)):
        np.testing.assert_array_equal(crop, decode_crop(pixels, channels, shape, box, (6, 9), flip=True))
    np.testing.assert_array_equal(crop, decode_crop(data, channels, shape, box, (6, 9), flip=True))


ALPHAS = {
    "PNG": np.full((HEIGHT, WIDTH), 255),
    "JPEG": np.full((HEIGHT, WIDTH), 255),
    "PNG alpha": np.asarray(with_alpha())[:, :, 3],
    "WebP alpha": np.asarray(with_alpha())[:, :, 3],
    "PNG greyscale with alpha": np.full((4, 5), 128),
    "PNG palette with transparency": np.repeat([[0] * 8 + [255] * 8], HEIGHT, axis=0),
}


@pytest.mark.parametrize("kind", ALPHAS)
def test_alpha_is_the_fourth_channel(kind):
    np.testing.assert_array_equal(decode(GOOD[kind][0](), 4)[:, :, 3], ALPHAS[kind])


# --- files that are refused -----------------------------------------------------------------------------------------


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def large(kind: str, **options: object) -> bytes:
    return saved(photograph(64, 64), kind, **options)


# A few hundred bytes that promise a picture too large for memory.
BOMBS = {
    "PNG bomb": (lambda: png(png_header(60_000, 60_000), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")), "many pixels"),
    "JPEG bomb": (lambda: sized(jpeg(), 65_500, 65_500), "too many pixels: 65500 x 65500"),
    "GIF bomb": (lambda: gif(65_535, 65_535), "too many pixels"),
    "WebP bomb": (lambda: lossless_webp(16_383, 16_383), "too many pixels"),
    "BMP bomb": (lambda: patched(saved(colours(), "BMP"), 18, struct.pack("<ii", 60_000, 60_000)), "too many pixels"),
    "TIFF bomb": (lambda: tiff(60_000, 60_000), "too many pixels"),
    "PPM bomb": (lambda: b"P6 60000 60000 255\n" + bytes(100), "too many pixels"),
    "JPEG of a size beyond its bytes": (lambda: sized(jpeg(), 10_000, 10_000), "truncated: .* cannot hold"),
    "PNG text bomb": (
        lambda: png(
            png_header(1, 1),
            (b"zTXt", b"k\0\0" + zlib.compress(bytes(300_000_000), 9)),
            (b"IDAT", zlib.compress(b"\0\0")),
            (b"IEND", b""),
        ),
        "Decompressed data too large",
    ),
}
REFUSED = BOMBS | {
    "empty": (lambda: b"", "cannot identify"),
    "text": (lambda: b"hello, I am no picture", "cannot identify"),
    "PDF": (lambda: saved(colours(), "PDF"), "cannot identify"),
    "PostScript, which would start a program": (lambda: saved(colours(), "EPS"), "cannot identify"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
    "icon": (lambda: saved(colours(), "ICO"), "cannot identify"),
    "JPEG truncated": (lambda: half(large("JPEG")), "truncated"),
    "JPEG progressive truncated": (lambda: half(large("JPEG", progressive=True)), "truncated"),
    "JPEG without its end mark": (lambda: jpeg()[:-2], "truncated"),
    "JPEG start alone": (lambda: jpeg()[:3], "cannot identify"),
    "JPEG header alone": (lambda: jpeg()[: segment(jpeg(), 0xDA)], "cannot load"),
    "JPEG of no height": (lambda: sized(jpeg(), WIDTH, 0), "cannot identify|broken"),
    "JPEG of twelve bits": (lambda: patched(jpeg(), segment(jpeg(), 0xC0) + 4, b"\x0c"), "cannot|broken|12"),
    "JPEG lossless": (lambda: patched(jpeg(), segment(jpeg(), 0xC0) + 1, b"\xc3"), "cannot|broken"),
    "JPEG of a thousand scans": (many_scans, "too many scans: 10"),
    "PNG truncated": (lambda: half(large("PNG")), "truncated"),
    "PNG header alone": (lambda: png(png_header(8, 8)), "cannot identify|truncated|broken"),
    "PNG without its pixels": (lambda: png(png_header(8, 8), (b"IEND", b"")), "truncated|cannot|broken"),
    "PNG of no width": (
        lambda: png(png_header(0, 8), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")),
        "cannot identify",
    ),
    "PNG of a wrong checksum": (lambda: patched(saved(colours(), "PNG"), 29, b"\0\0\0\0"), "cannot identify|broken"),
    "WebP truncated": (lambda: half(large("WEBP")), "cannot identify|could not create|failed"),
    "BMP truncated": (lambda: half(large("BMP")), "truncated"),
    "GIF truncated": (lambda: half(large("GIF")), "truncated"),
    "TIFF truncated": (lambda: half(large("TIFF")), "cannot identify|Truncated|truncated"),
    "TIFF of a size beyond its bytes": (lambda: tiff(5_000, 5_000), "truncated|not enough"),
    "PPM truncated": (lambda: half(large("PPM")), "truncated|not enough"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.timeout(30)
def test_refused(kind):
    make, reason = REFUSED[kind]
    data = make()
    for channels in CHANNELS:
        with pytest.raises(Unreadable, match=reason) as refusal:
            decode(data, channels)
        assert len(str(refusal.value)) < 300
    with pytest.raises(Unreadable):
        decode_crop(data, 3, (8, 8), (0, 0, 8, 8), (8, 8), flip=False)


def test_bombs_are_refused_before_their_memory_is_taken(tmp_path):
    for number, (make, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}").write_bytes(make())
    program = textwrap.dedent("""
        import pathlib, resource, sys
        from trainer.data.decode import decode
        from trainer.data.unreadable import Unreadable
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 200_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for path in pathlib.Path(sys.argv[1]).iterdir():
            try:
                decode(path.read_bytes(), 3)
            except Unreadable:
                print("refused")
    """)
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["refused"] * len(BOMBS), ended.stderr


def test_the_largest_image_is_allowed_and_one_pixel_more_is_not(monkeypatch):
    monkeypatch.setattr(unreadable, "MAX_PIXELS", HEIGHT * WIDTH)
    monkeypatch.setattr(decoding.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2)
    wider = colours().resize((WIDTH + 1, HEIGHT))
    for kind in ("PNG", "JPEG"):
        assert decode(saved(colours(), kind), 3).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(Unreadable, match="too many pixels"):
            decode(saved(wider, kind), 3)


def test_an_image_of_another_shape_than_the_index_knows_is_refused():
    for raw in (jpeg(), saved(colours(), "PNG"), decode(jpeg(), 3)):
        with pytest.raises(Unreadable, match=f"is {WIDTH} x {HEIGHT} pixels, but {WIDTH} x {HEIGHT + 1} were"):
            decode_crop(raw, 3, (HEIGHT + 1, WIDTH), (0, 0, 8, 8), (8, 8), flip=False)


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(photograph(90, 120))
    originals = [
        saved(picture, kind, **options)
        for kind, options in (
            ("JPEG", {}),
            ("PNG", {}),
            ("WEBP", {}),
            ("BMP", {}),
            ("TIFF", {}),
            ("JPEG", {"exif": TURNED, "progressive": True}),
            ("GIF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
        )
    ]
    outcomes = {"read": 0, "refused": 0}
    for turn in range(800):
        data = bytearray(originals[turn % len(originals)])
        for place in rng.integers(0, min(len(data), 200) if turn % 3 else len(data), size=4):
            data[place] = rng.integers(0, 256)
        raw = bytes(data[: rng.integers(len(data))] if turn % 10 == 0 else data)
        try:
            pixels = decode(raw, 3)
            shape, size = pixels.shape[:2], (30, 20)
            box = (0, 0, -(-shape[1] // 2), shape[0])
            crop = decode_crop(raw, 3, shape, box, size, flip=False)
            if decodes_whole(raw, shape, size):
                np.testing.assert_array_equal(crop, decode_crop(pixels, 3, shape, box, size, flip=False))
            outcomes["read"] += 1
        except Unreadable:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_damaged_headers_of_deep_images_never_escape_as_another_error():
    rng = np.random.default_rng(3)
    values = rng.integers(0, 4096, (24, 20)).astype(np.uint16)
    array, pages, bands, compressed = (io.BytesIO() for _ in range(4))
    np.save(array, values)
    tifffile.imwrite(pages, np.stack([values, values]), photometric="minisblack")
    tifffile.imwrite(bands, values[:, :, None].repeat(5, 2), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(compressed, values, compression="zlib", predictor=True)
    ppm = b"P5 20 24 4095\n" + values.astype(">u2").tobytes()
    originals = [file.getvalue() for file in (array, pages, bands, compressed)] + [saved(values, "PNG"), ppm]
    outcomes = {"read": 0, "refused": 0}
    for turn in range(1200):
        data = bytearray(originals[turn % len(originals)])
        for place in rng.integers(0, min(len(data), 200) if turn % 4 else len(data), size=rng.integers(1, 4)):
            data[place] = rng.choice([0, 1, 255, rng.integers(0, 256)])
        raw = bytes(data)
        try:
            facts = examine(raw)
            assert decode(raw, facts.bands).shape == (facts.height, facts.width, facts.bands)
            outcomes["read"] += 1
        except Unreadable:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50

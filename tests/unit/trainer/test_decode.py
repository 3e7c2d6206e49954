"""Image files of every kind, odd ones and hostile ones, and crops of them.

`GOOD` and `REFUSED` are the table of what becomes of which file: ``pytest -v`` prints it.
"""

import io
import struct
import subprocess
import sys
import textwrap
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from trainer.data import decode as decoding
from trainer.data.decode import Unreadable, decode, decode_crop, decodes_whole

RED, GREEN, BLUE = (220, 40, 30), (20, 200, 60), (30, 50, 210)
HEIGHT, WIDTH = 12, 16
CHANNELS = (1, 3, 4)


# --- pictures and files ---------------------------------------------------------------------------------------------


def colours() -> Image.Image:
    """Left red, right blue, a green band at the top."""
    pixels = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = RED, BLUE
    pixels[:4] = GREEN
    return Image.fromarray(pixels)


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (WIDTH, HEIGHT), colour)


def with_alpha() -> Image.Image:
    image = colours().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))))
    return image


def ramp() -> np.ndarray:
    """The whole range of sixteen bits."""
    return np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Something like one: detail at all sizes, and edges."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for size in (4, 9, 20, 45, 100, 220):
        coarse = rng.normal(size=(size, size, 3)) * 60 / np.sqrt(size)
        pixels += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 2
    pixels[height // 3 : height // 2, width // 4 : width // 2] += 70
    return np.clip(pixels + 128, 0, 255).astype(np.uint8)


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int, bits: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


def deep_png() -> bytes:
    """Sixteen bits a channel, which Pillow reads and cannot write."""
    rows = np.repeat(ramp().astype(">u2")[:, :, None], 3, axis=2)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(png_header(WIDTH, HEIGHT, 16, 2), (b"IDAT", zlib.compress(body)), (b"IEND", b""))


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    return saved(image or colours(), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def segment(data: bytes, marker: int) -> int:
    """Where a JPEG's segment begins."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def forgiven(data: bytes = b"") -> bytes:
    """A JPEG whose scan claims, as some cameras' do, the lowest frequency alone."""
    data = data or jpeg()
    return patched(data, segment(data, 0xDA) + 12, b"\0")


def sized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims to be of another size."""
    at = segment(data, 0xC0) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes a thousand times."""
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 1000 + data[-2:]


def tiff(width: int, height: int, next_directory: int = 0) -> bytes:
    """A greyscale TIFF of one strip that holds 64 pixels, whatever it claims."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 64)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    body = b"II*\0" + struct.pack("<I", 72) + bytes(range(64))
    return body + struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)


def gif(width: int, height: int) -> bytes:
    return patched(saved(colours(), "GIF"), 6, struct.pack("<HH", width, height))


def lossless_webp(width: int, height: int) -> bytes:
    """A WebP's header without what it heads."""
    bits = struct.pack("<I", (width - 1) | ((height - 1) << 14))
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + bits + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


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
    "TIFF floats to 255": (lambda: saved((ramp() / 257).astype(np.float32), "TIFF"), DEEP, 1),
    "TIFF floats to 65535": (lambda: saved(ramp().astype(np.float32), "TIFF"), DEEP, 1),
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
        from trainer.data.decode import Unreadable, decode
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
    monkeypatch.setattr(decoding, "MAX_PIXELS", HEIGHT * WIDTH)
    monkeypatch.setattr(decoding.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2)
    wider = colours().resize((WIDTH + 1, HEIGHT))
    for kind in ("PNG", "JPEG"):
        assert decode(saved(colours(), kind), 3).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(Unreadable, match="too many pixels"):
            decode(saved(wider, kind), 3)


def test_an_image_of_another_shape_than_the_index_knows_is_refused():
    for raw in (jpeg(), saved(colours(), "PNG"), decode(jpeg(), 3)):
        with pytest.raises(Unreadable, match=f"is {WIDTH} x {HEIGHT} pixels, where {WIDTH} x {HEIGHT + 1} were"):
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

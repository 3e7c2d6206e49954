"""Image files for tests: every kind that there is, by hand where no library writes it."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

RED, GREEN, BLUE = (220, 40, 30), (20, 200, 60), (30, 50, 210)
HEIGHT, WIDTH = 12, 16
CHANNELS = (1, 3, 4)


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

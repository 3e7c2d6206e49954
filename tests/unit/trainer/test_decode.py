"""Image files of every kind, and crops of them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data import decode as decoding
from trainer.data.decode import Unreadable, crop_resize
from trainer.data.sources import Folder

RED, GREEN, BLUE = (220, 40, 30), (20, 200, 60), (30, 50, 210)
HEIGHT, WIDTH = 12, 16


def colours() -> Image.Image:
    """Left red, right blue, a green row at the top."""
    pixels = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = RED, BLUE
    pixels[:4] = GREEN
    return Image.fromarray(pixels)


def with_alpha() -> Image.Image:
    image = colours().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))))
    return image


def read_file(path: Path, channels: int) -> np.ndarray:
    folder = Folder(str(path.parent), channels)
    return folder.read(list(folder.names).index(path.name))


def grey_of(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(float) @ np.array([0.299, 0.587, 0.114])


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
"""The camera was turned: show the picture a quarter clockwise."""
KINDS = {
    "plain.png": (colours, {}),
    "plain.webp": (colours, {"lossless": True}),
    "plain.bmp": (colours, {}),
    "plain.tif": (colours, {}),
    "packed.tiff": (colours, {"compression": "tiff_lzw"}),
    "palette.png": (lambda: colours().quantize(8), {}),
    "UPPER.PNG": (colours, {}),
    "alpha.png": (with_alpha, {}),
    "alpha.webp": (with_alpha, {"lossless": True, "exact": True}),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lossless_files_give_their_pixels(tmp_path, name, channels):
    make, options = KINDS[name]
    make().save(tmp_path / name, **options)
    pixels = read_file(tmp_path / name, channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (HEIGHT, WIDTH, channels)
    rgb = np.asarray(colours())
    if channels == 1:
        assert np.abs(pixels[:, :, 0] - grey_of(rgb)).max() <= 1
    else:
        np.testing.assert_array_equal(pixels[:, :, :3], rgb)  # transparency is dropped, not blended
    if channels == 4:
        alpha = np.asarray(with_alpha())[:, :, 3] if name.startswith("alpha") else np.full((HEIGHT, WIDTH), 255)
        np.testing.assert_array_equal(pixels[:, :, 3], alpha)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpegs_of_all_modes_come_out_close(tmp_path, mode, channels):
    colours().convert(mode).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    pixels = read_file(tmp_path / "a.jpg", channels).astype(float)
    assert pixels.shape == (HEIGHT, WIDTH, channels)
    rgb = np.asarray(colours())
    expected = np.repeat(grey_of(rgb)[:, :, None], 3, axis=2) if mode == "L" else rgb
    seen = pixels[:, :, :3] if channels > 1 else pixels
    wanted = expected if channels > 1 else grey_of(rgb)[:, :, None]
    assert np.abs(seen - wanted).mean() < 6
    assert (pixels[:, :, 3:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_become_eight(tmp_path, channels):
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("deep.png", "float.tif"):
        pixels = read_file(tmp_path / name, channels)
        assert pixels.shape == (HEIGHT, WIDTH, channels)
        assert np.abs(pixels[:, :, :3] - (ramp / 257)[:, :, None]).max() <= 1  # the whole range, not clipped at 255


@pytest.mark.parametrize(("channels", "expected"), [(1, [90]), (3, [90, 90, 90]), (4, [90, 90, 90, 128])])
def test_greyscale_with_alpha(tmp_path, channels, expected):
    Image.new("LA", (5, 4), (90, 128)).save(tmp_path / "a.png")
    pixels = read_file(tmp_path / "a.png", channels)
    assert pixels.shape == (4, 5, channels)
    assert (pixels == expected).all()


def test_a_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (0, 0, 2, 4))
    image.save(tmp_path / "a.png", transparency=2)
    pixels = read_file(tmp_path / "a.png", 4)
    assert (pixels[:, :2] == [*BLUE, 0]).all()
    assert (pixels[:, 2:] == [*GREEN, 255]).all()
    np.testing.assert_array_equal(read_file(tmp_path / "a.png", 3), pixels[:, :, :3])
    assert np.abs(read_file(tmp_path / "a.png", 1)[0, 3, 0] - grey_of(np.array(GREEN))) <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_turned_camera_is_turned_back(tmp_path, channels):
    colours().save(tmp_path / "a.png", exif=ROTATED)
    colours().save(tmp_path / "b.png")
    turned, plain = (read_file(tmp_path / name, channels) for name in ("a.png", "b.png"))
    assert turned.shape == (WIDTH, HEIGHT, channels)
    np.testing.assert_array_equal(turned, np.rot90(plain, k=-1))


def test_one_bit_images_are_black_and_white(tmp_path):
    Image.fromarray(np.eye(6, dtype=bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_file(tmp_path / "a.png", 1)[:, :, 0], np.eye(6) * 255)


def png_claiming(width: int, height: int) -> bytes:
    """A tiny file whose header promises a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    colours().resize((200, 200)).save(file, "JPEG")
    return file.getvalue()


DAMAGED = {
    "truncated.jpg": (lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
    "text.jpg": (lambda: b"hello, I am no picture", "cannot identify"),
    "empty.png": (lambda: b"", "cannot identify"),
    "bomb.png": (lambda: png_claiming(60_000, 60_000), "too many pixels"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_damaged_files_are_unreadable_with_a_reason(tmp_path, name, channels):
    make, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(Unreadable, match=reason):
        read_file(tmp_path / name, channels)


def test_the_largest_allowed_image_is_a_setting_of_pixels(tmp_path, monkeypatch):
    colours().save(tmp_path / "a.png")
    monkeypatch.setattr(decoding.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2)
    assert read_file(tmp_path / "a.png", 3).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(decoding.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    with pytest.raises(Unreadable, match="too many pixels"):
        read_file(tmp_path / "a.png", 3)


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    originals = []
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {})):
        file = io.BytesIO()
        colours().save(file, kind, **options)
        originals.append(file.getvalue())
    outcomes = {"read": 0, "refused": 0}
    for turn in range(500):
        data = bytearray(originals[turn % len(originals)])
        for place in rng.integers(0, min(len(data), 200), size=4):
            data[place] = rng.integers(0, 256)
        try:
            decoding.decode(bytes(data), 3)
            outcomes["read"] += 1
        except Unreadable:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


# --- crops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_crop_of_the_image_s_own_size_is_the_image(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, channels), dtype=np.uint8)
    np.testing.assert_array_equal(crop_resize(pixels, (0, 0, 10, 8), (8, 10), flip=False), pixels)
    np.testing.assert_array_equal(crop_resize(pixels, (0, 0, 10, 8), (8, 10), flip=True), pixels[:, ::-1])
    pixels[:, :, 3:] |= 128  # colours are weighted by alpha when resized: those of clear pixels mean nothing
    inner = crop_resize(pixels, (2, 1, 6, 5), (4, 4), flip=False).astype(int)
    assert np.abs(inner - pixels[1:5, 2:6]).max() <= (2 if channels == 4 else 0)


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64, 1), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = crop_resize(stripes, (0, 0, 64, 64), (8, 8), flip=False)
    assert small.shape == (8, 8, 1)
    assert np.abs(small[:, 1:-1].astype(int) - 128).max() < 12

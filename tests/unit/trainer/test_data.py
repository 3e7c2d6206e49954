"""Image files of every kind, folders, the index of readable images, and the digits."""

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.control import Agreement
from trainer.data import dataset as datasets
from trainer.data import decode as decoding
from trainer.data.dataset import open_training_data
from trainer.data.decode import Unreadable, crop_resize
from trainer.data.index import BadImage, Index, build_index, split
from trainer.data.loader import read
from trainer.data.sources import Digits, Folder, open_source
from trainer.errors import DataError
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec

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


# --- folders -------------------------------------------------------------------------------------------------------


def fill(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number * 7 % 256, number // 36, 5)).save(root / name)
    return root


def test_first_level_folders_are_the_classes(tmp_path):
    folder = Folder(str(fill(tmp_path, "dog/b.png", "cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG")), 3)
    assert list(folder.names) == ["cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG", "dog/b.png"]
    assert folder.classes == ("cat", "dog")
    assert folder.labels is not None
    assert folder.labels.tolist() == [0, 0, 1, 1]
    assert len(folder) == 4


@pytest.mark.parametrize(
    "names", [("a.png", "b.jpg"), ("only/a.png", "only/b.png"), ("a.png", "cat/b.png", "dog/c.png")]
)
def test_flat_mixed_and_single_folders_have_no_labels(tmp_path, names):
    folder = Folder(str(fill(tmp_path, *names)), 3)
    assert list(folder.names) == sorted(names)
    assert folder.labels is None
    assert folder.classes == ()


def test_hidden_and_other_files_are_passed_over(tmp_path):
    fill(tmp_path, "a.png", ".hidden.png", ".cache/b.png", "sub/.thumbs/c.png", "sub/d.bmp")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "noend").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    assert list(Folder(str(tmp_path), 3).names) == ["a.png", "sub/d.bmp"]


def test_a_uri_and_a_path_are_the_same_folder(tmp_path):
    fill(tmp_path, "a.png")
    assert list(open_source(f"file://{tmp_path}", 3).names) == list(open_source(str(tmp_path), 3).names)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no folder .*/nowhere"):
        Folder(str(tmp_path / "nowhere"), 3)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=f"no images in {tmp_path}"):
        Folder(str(tmp_path), 3)
    with pytest.raises(DataError, match="no folder"):
        Folder(str(tmp_path / "notes.txt"), 3)


def test_a_folder_that_links_to_itself_is_refused(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        Folder(str(tmp_path), 3)


def test_a_link_to_nowhere_is_one_bad_image(tmp_path):
    fill(tmp_path / "data", "a.png", "b.png")
    (tmp_path / "data/gone.png").symlink_to("/nowhere/at/all.png")
    index = build_index(Folder(str(tmp_path / "data"), 3), tmp_path / "cache", 1)
    assert index.good.tolist() == [0, 1]
    assert [bad.name for bad in index.bad] == ["gone.png"]


def test_names_that_are_no_unicode_are_read(tmp_path):
    fill(tmp_path / "data", "a.png")
    odd = os.fsencode(tmp_path / "data") + b"/\xff.png"
    shutil.copy(tmp_path / "data/a.png", odd)
    index = build_index(Folder(str(tmp_path / "data"), 3), tmp_path / "cache", 1)
    assert len(index.good) == 2


# --- index ---------------------------------------------------------------------------------------------------------


def messy(root: Path, good: int = 5) -> Path:
    fill(root, *[f"{number:03d}.png" for number in range(good)])
    (root / "001a.jpg").write_bytes(b"text")
    (root / "zero.png").write_bytes(b"")
    return root


def test_the_index_names_what_cannot_be_read(tmp_path):
    index = build_index(Folder(str(messy(tmp_path / "data")), 3), tmp_path / "cache", threads=2)
    assert index.good.tolist() == [0, 1, 3, 4, 5]
    assert [bad.name for bad in index.bad] == ["001a.jpg", "zero.png"]
    assert all("cannot identify" in bad.reason for bad in index.bad)
    again = Index.from_json(index.to_json())
    np.testing.assert_array_equal(again.good, index.good)
    assert (again.bad, again.fingerprint) == (index.bad, index.fingerprint)
    assert index.bad[0] == BadImage("001a.jpg", index.bad[0].reason)


def no_reading(self, position):
    raise AssertionError("an image was read")


def test_a_second_index_reads_no_image(tmp_path, monkeypatch):
    root, cache = messy(tmp_path / "data"), tmp_path / "cache"
    first = build_index(Folder(str(root), 3), cache, threads=1)
    monkeypatch.setattr(Folder, "read", no_reading)
    second = build_index(Folder(str(root), 3), cache, threads=1)
    assert second.to_json() == first.to_json()
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["added", "removed", "rewritten"])
def test_a_changed_listing_is_indexed_anew(tmp_path, change):
    root, cache = messy(tmp_path / "data"), tmp_path / "cache"
    first = build_index(Folder(str(root), 3), cache, threads=1)
    if change == "added":
        fill(root, "999.png")
    elif change == "removed":
        (root / "000.png").unlink()
    else:
        Image.new("RGB", (6, 4), "white").save(root / "000.png")
        os.utime(root / "000.png", ns=(1, 1))
    second = build_index(Folder(str(root), 3), cache, threads=1)
    assert len(second.good) == len(first.good) + {"added": 1, "removed": -1, "rewritten": 0}[change]
    assert second.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_names_and_pixels_wherever_they_lie(tmp_path):
    def fingerprint(root: Path, cache: str) -> str:
        return build_index(Folder(str(root), 3), tmp_path / cache, threads=2).fingerprint

    here = fingerprint(messy(tmp_path / "here"), "a")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert fingerprint(tmp_path / "there", "b") == here
    assert Folder(str(tmp_path / "there"), 3).listing  # times of change do not matter to the fingerprint
    os.utime(tmp_path / "there/000.png", ns=(1, 1))
    assert fingerprint(tmp_path / "there", "c") == here
    image = Image.open(tmp_path / "there/000.png").convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(tmp_path / "there/000.png")
    assert fingerprint(tmp_path / "there", "d") != here
    (tmp_path / "here/000.png").rename(tmp_path / "here/0000.png")
    assert fingerprint(tmp_path / "here", "e") != here


def test_nothing_readable_is_an_error_that_names_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"x")
    for _ in range(2):  # from the cache alike
        with pytest.raises(DataError, match=r"none of the 1 files of .*data can be read; the first is a\.png"):
            build_index(Folder(str(tmp_path / "data"), 3), tmp_path / "cache", threads=1)


@pytest.mark.parametrize("images", [1, 9, 10, 1797, 20_479, 30_000])
def test_the_split_is_the_schedule_s(images):
    spec = PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": "/d"}, "optimization": {"global_batch_size": 1}}
    )
    train, held_out = split(images)
    schedule = Schedule.of(spec, images)
    assert (len(train), len(held_out)) == (schedule.train_images, schedule.held_out_images)
    assert sorted([*train, *held_out]) == list(range(images))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(split(images)[1], held_out)


def test_a_file_that_is_lost_after_indexing_is_named(tmp_path):
    folder = Folder(str(fill(tmp_path, "a.png", "b.png")), 3)
    (tmp_path / "b.png").unlink()
    assert read(folder, 0).shape == (4, 6, 3)
    with pytest.raises(DataError, match=r"b\.png of .* cannot now"):
        read(folder, 1)
    (tmp_path / "a.png").write_bytes(b"overwritten")
    with pytest.raises(DataError, match=r"a\.png"):
        read(folder, 0)


# --- digits and the whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_digits(channels):
    digits = open_source("builtin://digits", channels)
    assert isinstance(digits, Digits)
    assert len(digits) == len(digits.names) == 1797
    pixels = digits.read(5)
    assert (pixels.shape, pixels.dtype) == ((32, 32, channels), np.uint8)
    assert pixels[:, :, 0].max() > 200
    for channel in range(1, min(channels, 3)):
        np.testing.assert_array_equal(pixels[:, :, channel], pixels[:, :, 0])
    assert (pixels[:, :, 3:] == 255).all()
    assert digits.classes == tuple("0123456789")
    assert digits.labels is not None
    assert digits.labels[:10].tolist() == list(range(10))
    assert np.bincount(digits.labels).min() > 150


def spec_for(root: Path, **parts) -> PretrainSpec:
    return PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": str(root)}, "optimization": {"global_batch_size": 4}} | parts
    )


def test_training_data_keeps_train_and_held_out_apart(tmp_path, caplog):
    root = messy(tmp_path / "data", good=30)
    data = open_training_data(spec_for(root), tmp_path / "cache", 1, Agreement(1), 0)
    assert (len(data.train), len(data.held_out), data.images) == (27, 3, 30)
    assert not set(data.train) & set(data.held_out)
    assert data.held_out_source is data.source
    assert set(data.tags().values()) == {"30", data.fingerprint}
    assert "001a.jpg" in caplog.text
    assert "2 of 32 files" in caplog.text
    read_positions = {data.source.names[position] for position in [*data.train, *data.held_out]}
    assert len(read_positions) == 30
    assert not read_positions & {"001a.jpg", "zero.png"}


def test_long_lists_of_bad_files_are_cut_short_in_the_log(tmp_path, caplog):
    root = fill(tmp_path / "data", "a.png")
    for number in range(50):
        (root / f"bad-{number}.png").write_bytes(b"")
    open_training_data(spec_for(root), tmp_path / "cache", 1, Agreement(1), 0)
    assert caplog.text.count("Left out") == datasets.BAD_NAMES_LOGGED
    assert "50 of 51 files" in caplog.text


def test_a_held_out_dataset_of_its_own_leaves_all_images_to_training(tmp_path):
    root, other = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)]), fill(tmp_path / "other", "x.png", "y.png")
    data = open_training_data(
        spec_for(root, evaluation={"dataset": {"uri": str(other)}}), tmp_path / "cache", 1, Agreement(1), 0
    )
    assert (len(data.train), len(data.held_out)) == (20, 2)
    assert list(data.held_out_source.names) == ["x.png", "y.png"]


def test_a_probe_without_labels_is_refused_only_where_it_was_asked_for(tmp_path):
    root = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)])
    with pytest.raises(DataError, match=r"evaluation\.probes: .* no labels"):
        open_training_data(
            spec_for(root, evaluation={"probes": ["linear"]}), tmp_path / "cache", 1, Agreement(1), 0
        )
    for probes in ("auto", []):
        spec = spec_for(root, evaluation={"probes": probes})
        assert open_training_data(spec, tmp_path / "cache", 1, Agreement(1), 0).source.labels is None


def test_given_mean_and_deviation_are_used(tmp_path):
    root = fill(tmp_path / "data", "a.png")
    spec = spec_for(root, augmentation={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    data = open_training_data(spec, tmp_path / "cache", 1, Agreement(1), 0)
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

"""Pictures as evaluations see them, against Pillow itself: what every other tool's preprocessing starts from."""

import io
import sys

import numpy as np
import pytest
import torch
from backbones import MEAN, STD, shaken, spec_of, stored_checkpoint
from image_sets import dataset, picture, place
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from trainer.data.dataset import open_images
from trainer.data.images import Images
from trainer.data.preprocessing import fitted, processor_settings
from trainer.export import verify
from trainer.export.graph import export_program
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.own_features import VerifyError, load_trained
from trainer.spec.pretrain import MethodSpec

SIDE = 32
SIZES = [(32, 32), (33, 32), (20, 50), (70, 51), (400, 33), (21, 14), (160, 120)]
MODES = {3: "RGB", 1: "L"}


def files_in(folder):
    """Pictures of many shapes and modes."""
    folder.mkdir()
    for number, size in enumerate(SIZES):
        (folder / f"{number}.jpg").write_bytes(picture(number, size))
        (folder / f"{number}.png").write_bytes(picture(number, size, "PNG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "rotated.jpg").write_bytes(picture(20, (60, 37), exif=exif))
    image = Image.open(io.BytesIO(picture(21, (61, 47), "PNG")))
    image.convert("P").save(folder / "palette.png")
    image.convert("P").save(folder / "transparent.gif", transparency=image.convert("P").getpixel((5, 5)))
    image.convert("CMYK").save(folder / "cmyk.jpg")
    for mode in ("1", "L", "LA", "RGBA"):
        converted = image.convert(mode)
        if "A" in mode:
            converted.putalpha(Image.open(io.BytesIO(picture(22, (61, 47), "PNG"))).convert("L"))
        converted.save(folder / f"mode-{mode}.png")
    return folder


def opened(folder, tmp_path, channels: int = 3, cache: str = "none", size=(SIDE, SIDE)) -> Images:
    return open_images(dataset(folder, cache=cache), channels, size, place(tmp_path, threads=2))


def by_pillow(file, mode: str, size=(SIDE, SIDE)) -> np.ndarray:
    """What any tool makes of a file (C, h, w)."""
    image = ImageOps.exif_transpose(Image.open(file)).convert(mode)
    if size[0] == size[1]:
        wide, tall = (int(size[0] * edge / min(image.size)) for edge in image.size)
        image = image.resize((wide, tall), Image.Resampling.BICUBIC)
        left, top = (wide - size[1]) // 2, (tall - size[0]) // 2
        image = image.crop((left, top, left + size[1], top + size[0]))
    else:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*size, -1).transpose(2, 0, 1)


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (24, 40)])
@pytest.mark.parametrize("channels", MODES)
def test_evaluations_see_what_pillow_makes_of_a_file(tmp_path, channels, size, cache):
    """Decoded at full size, whatever is kept decoded, and with the luma that other tools compute."""
    folder = files_in(tmp_path / "data")
    images = opened(folder, tmp_path, channels, cache, size)
    seen = images.fitted(np.arange(len(images)), size)
    assert len(seen) == len(list(folder.iterdir()))
    for row, name in enumerate(images.index.table.names):
        np.testing.assert_array_equal(seen[row], by_pillow(folder / name, MODES[channels], size), name)


def test_images_of_the_network_s_size_are_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data/a.png")
    seen = opened(tmp_path / "data", tmp_path).fitted([0], (SIDE, SIDE))
    np.testing.assert_array_equal(seen[0].transpose(1, 2, 0), pixels)


@pytest.mark.parametrize("bands", [2, 4, 5])
def test_each_band_of_other_images_is_resized_alone(bands):
    """Not as RGBA, of which Pillow forgets the colour where alpha is 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 61, bands), dtype=np.uint8)
    pixels[:, :20, -1] = 0
    alone = [fitted(pixels[:, :, band : band + 1], (SIDE, SIDE)) for band in range(bands)]
    np.testing.assert_array_equal(fitted(pixels, (SIDE, SIDE)), np.concatenate(alone, axis=2))


def test_a_picture_of_extreme_length_takes_no_more_memory_than_its_centre():
    """Resized whole, this one would take 16 GB."""
    line = np.zeros((1, 4_000_000, 3), dtype=np.uint8)
    line[:, 2_000_000:] = 255
    seen = fitted(line, (SIDE, SIDE))
    assert seen[:, 0].max() < 10
    assert seen[:, -1].min() > 245
    np.testing.assert_array_equal(fitted(line.transpose(1, 0, 2), (SIDE, SIDE)), seen.transpose(1, 0, 2))


# --- folders of transformers -----------------------------------------------------------------------------------------


def mixed(folder) -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(file)) for file in sorted(folder.iterdir())]


def normalised(pixels: np.ndarray) -> np.ndarray:
    centre, spread = (np.reshape(values, (3, 1, 1)) for values in (MEAN, STD))
    return (pixels / 255 - centre) / spread


@pytest.mark.parametrize("img_size", [[SIDE, SIDE], [24, 40]])
def test_transformers_prepares_pictures_of_any_mode_in_one_call(tmp_path, img_size):
    spec, folder = spec_of(img_size=img_size), files_in(tmp_path / "data")
    export_vit(shaken(spec).state_dict(), spec.model, MEAN, STD, tmp_path / "hf")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "hf")(mixed(folder), return_tensors="np")["pixel_values"]
    for found, file in zip(pixels, sorted(folder.iterdir()), strict=True):
        expected = normalised(by_pillow(file, "RGB", tuple(img_size)))
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=file.name)


def test_both_folders_of_transformers_prepare_alike(tmp_path):
    spec = spec_of()
    weights = shaken(spec).state_dict()
    export_vit(weights, spec.model, MEAN, STD, tmp_path / "hf")
    export_vit_mae(weights, spec.model, MethodSpec(), MEAN, STD, tmp_path / "hf-mae")
    first, second = ((tmp_path / form / "preprocessor_config.json").read_text() for form in ("hf", "hf-mae"))
    assert first == second


@pytest.mark.parametrize(("channels", "converts"), [(1, False), (3, True), (5, False)])
def test_only_colour_is_converted_to(channels, converts):
    """A processor that converted would turn one channel into three, and fail on their mean."""
    numbers = (0.5,) * channels
    assert processor_settings(channels, (SIDE, SIDE), numbers, numbers)["do_convert_rgb"] is converts


# --- the trainer's own pixels of files -------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """A folder with a checkpoint, its exports, and pictures."""
    spec, _, teacher = stored_checkpoint(tmp_path / "checkpoint")
    export_vit(teacher.state_dict(), spec.model, MEAN, STD, tmp_path / "hf")
    export_program(teacher.state_dict(), spec.model, MEAN, STD, tmp_path / "torch_export")
    files_in(tmp_path / "data")
    return tmp_path


def exit_status(monkeypatch, folder, backbone: str, *pictures) -> int:
    arguments = ["--checkpoint", folder / "checkpoint", "--backbone", folder / backbone, "--pictures", *pictures]
    monkeypatch.setattr(sys, "argv", ["verify", *map(str, arguments)])
    return verify.main()


def test_a_checkpoint_gives_the_pixels_and_features_of_files(trained):
    ours, files = load_trained(trained / "checkpoint"), sorted((trained / "data").iterdir())
    pixels = ours.pixels(files)
    for found, file in zip(pixels, files, strict=True):
        np.testing.assert_allclose(found, normalised(by_pillow(file, "RGB")), atol=1e-5, err_msg=file.name)
    with torch.no_grad():
        expected = ours.network.encode(pixels)[:, 1:].mean(dim=1)
    np.testing.assert_allclose(ours.features(files), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["hf", "torch_export"])
def test_pictures_are_compared_with_what_a_folder_makes_of_them(trained, monkeypatch, form):
    assert exit_status(monkeypatch, trained, form, *(trained / "data").iterdir()) == 0


@pytest.mark.parametrize(("form", "file"), [("hf", "preprocessor_config.json"), ("torch_export", "signature.json")])
def test_a_folder_that_prepares_pictures_otherwise_fails(trained, monkeypatch, form, file):
    """As folders of earlier versions do, which squash."""
    config = trained / form / file
    squashing = config.read_text().replace('"shortest_edge": 32', '"height": 32, "width": 32')
    config.write_text(squashing.replace('"do_center_crop": true', '"do_center_crop": false'))
    assert exit_status(monkeypatch, trained, form, trained / "data/0.png") == 0
    assert exit_status(monkeypatch, trained, form, trained / "data/4.png") == 1


def test_a_file_that_is_no_picture_is_told(trained, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        exit_status(monkeypatch, trained, "hf", trained / "hf/config.json")
    assert "config.json cannot be read as a picture" in capsys.readouterr().err
    with pytest.raises(VerifyError, match=r"config\.json cannot be read as a picture: .*leave it out"):
        load_trained(trained / "checkpoint").pixels([trained / "hf/config.json"])

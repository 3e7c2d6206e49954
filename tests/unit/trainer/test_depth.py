"""Images of more than eight bits, of floats and of bands: one scale for a whole dataset."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from image_files import saved
from image_sets import SIZE, dataset, opened, place
from PIL import Image

from trainer.data.dataset import open_training_data
from trainer.data.decode import decode, decode_crop, examine
from trainer.data.scale import Scale
from trainer.data.unreadable import Unreadable
from trainer.errors import DataError
from trainer.export.huggingface import preprocessor
from trainer.spec.pretrain import ModelSpec, PretrainSpec
from trainer.training.state import Metadata

RNG = np.random.default_rng(5)
TWELVE = RNG.integers(0, 4096, (20, 24)).astype(np.uint16)
RGB16 = RNG.integers(0, 4096, (20, 24, 3)).astype(np.uint16)


def png16(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values if values.ndim == 2 else np.ascontiguousarray(values[:, :, ::-1]))[1].tobytes()


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def write(root: Path, suffix: str, files: list[bytes]) -> Path:
    root.mkdir(parents=True)
    for number, data in enumerate(files):
        (root / f"{number:03d}{suffix}").write_bytes(data)
    return root


def notice(images, code: str) -> str:
    return next(each.message for each in images.notices if each.code == code)


# --- one scale --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "encode"),
    [
        (".png", png16), (".tif", tiff), (".npy", npy), (".tif", lambda v: tiff(v, compression="zlib", predictor=True)),
        (".tif", lambda v: tiff(v, compression="lzw")), (".tif", lambda v: tiff(v, bigtiff=True, byteorder=">")),
    ],
)  # fmt: skip
def test_twelve_bits_keep_their_grey_levels(tmp_path, suffix, encode):
    images = opened(write(tmp_path / "data", suffix, [encode(TWELVE), encode(TWELVE // 2)]), tmp_path, channels=1)
    np.testing.assert_allclose(images.pixels(0)[:, :, 0], TWELVE / 4095 * 255, atol=0.5)
    np.testing.assert_allclose(images.pixels(1)[:, :, 0], TWELVE // 2 / 4095 * 255, atol=0.5)  # not by its own greatest
    told = notice(images, "value_range_chosen")
    assert f"values of 0 to {TWELVE.max()}; 0 becomes black and 4095 white" in told
    given = opened(tmp_path / "data", tmp_path, channels=1, value_range=[0, 1000])
    assert (given.pixels(0)[:, :, 0][TWELVE >= 1000] == 255).all()


@pytest.mark.parametrize("encode", [png16, tiff, npy])
def test_colours_of_twelve_bits_keep_theirs(tmp_path, encode):
    suffix = {png16: ".png", tiff: ".tif", npy: ".npy"}[encode]
    data = encode(RGB16) if encode is not tiff else tiff(RGB16, photometric="rgb")
    images = opened(write(tmp_path / "data", suffix, [data]), tmp_path)
    np.testing.assert_allclose(images.pixels(0), RGB16 / 4095 * 255, atol=0.5)
    grey = opened(tmp_path / "data", tmp_path, channels=1)
    expected = RGB16 @ np.array([0.299, 0.587, 0.114]) / 4095 * 255
    np.testing.assert_allclose(grey.pixels(0)[:, :, 0], expected, atol=1.5)


def test_one_bright_pixel_does_not_darken_its_image(tmp_path):
    plain = RNG.uniform(0.1, 0.9, (20, 24)).astype(np.float32)
    bright = plain.copy()
    bright[3, 4] = 1.02
    images = opened(write(tmp_path / "data", ".tif", [tiff(plain), tiff(bright)]), tmp_path, channels=1)
    np.testing.assert_allclose(images.pixels(0)[:, :, 0], plain * 255, atol=0.5)
    assert abs(images.pixels(0).mean() - images.pixels(1).mean()) < 1


def test_signed_values_are_spread_over_what_the_dataset_has(tmp_path):
    scans = [np.full((20, 24), value, np.int16) for value in (-1024, 0, 3071)]
    images = opened(write(tmp_path / "data", ".tif", [tiff(scan) for scan in scans]), tmp_path, channels=1)
    assert [int(images.pixels(row)[0, 0, 0]) for row in range(3)] == [0, 64, 255]
    windowed = opened(tmp_path / "data", tmp_path, channels=1, value_range=[-160, 240])
    assert [int(windowed.pixels(row)[0, 0, 0]) for row in range(3)] == [0, 102, 255]


def test_floats_that_are_no_numbers_are_black(tmp_path):
    values = np.array([[0.0, 0.5], [np.nan, np.inf]], np.float32)
    images = opened(write(tmp_path / "data", ".tif", [tiff(values)]), tmp_path, channels=1)
    assert images.pixels(0)[:, :, 0].tolist() == [[0, 255], [0, 255]]


def test_eight_bits_stay_as_they_are_beside_deeper_ones_and_dark_ones_are_told_of(tmp_path):
    grey = (TWELVE // 16).astype(np.uint8)
    root = write(tmp_path / "data", ".png", [saved(grey, "PNG"), png16(TWELVE)])
    images = opened(root, tmp_path, channels=1)
    np.testing.assert_array_equal(images.pixels(0)[:, :, 0], grey)
    np.testing.assert_allclose(images.pixels(1)[:, :, 0], TWELVE / 4095 * 255, atol=0.5)
    dark = opened(write(tmp_path / "dark", ".png", [saved(grey // 16, "PNG")]), tmp_path, channels=1)
    assert "dataset.value_range: [0, 15]" in notice(dark, "value_range_dark")
    seen = opened(tmp_path / "dark", tmp_path, channels=1, value_range=[0, 15])
    assert seen.pixels(0).max() == 255


def test_a_range_beside_all_values_is_told_of(tmp_path):
    images = opened(write(tmp_path / "data", ".png", [png16(TWELVE)]), tmp_path, channels=1, value_range=[5000, 6000])
    assert "outside 5000 to 6000" in notice(images, "value_range_misses")


def test_crops_are_scaled_like_whole_images_kept_decoded_or_not(tmp_path):
    root = write(tmp_path / "data", ".png", [png16(TWELVE)])
    boxes, flips = np.array([[2, 1, 22, 17]]), np.array([True])
    crops = [
        opened(root, tmp_path, channels=1, cache=cache, value_range=[0, 2000]).crops([0], boxes, flips, SIZE)
        for cache in ("none", "ram")
    ]
    np.testing.assert_array_equal(crops[0], crops[1])
    expected = decode_crop(
        np.clip(np.rint(TWELVE[:, :, None] / 2000 * 255), 0, 255).astype(np.uint8),
        1,
        (20, 24),
        (2, 1, 22, 17),
        SIZE,
        True,
    )
    np.testing.assert_array_equal(crops[0][0, 0], expected[:, :, 0])


@pytest.mark.parametrize(("given", "expected"), [({}, 64), ({"value_range": [0, 1023]}, 255)])
def test_images_to_evaluate_on_have_the_scale_of_the_training_images(tmp_path, given, expected):
    dark = np.full((20, 24), 1023, np.uint16)
    write(tmp_path / "train", ".png", [png16(TWELVE)] * 2)
    write(tmp_path / "test", ".png", [png16(dark)])
    spec = PretrainSpec.model_validate(
        {
            "kind": "pretrain",
            "dataset": {"uri": str(tmp_path / "train"), "cache": "none"},
            "evaluation": {"dataset": {"uri": str(tmp_path / "test"), "cache": "none", **given}},
            "model": {"img_size": 32, "patch_size": 8, "in_chans": 1},
        }
    )
    data = open_training_data(spec, place(tmp_path))
    assert data.held_out_images.pixels(0).max() == expected


def test_two_scales_of_the_same_images_are_not_mixed_up_in_memory(tmp_path):
    root = write(tmp_path / "data", ".png", [png16(TWELVE)])
    means = [
        opened(root, tmp_path, channels=1, cache="ram", value_range=[0, top]).reader.fetch([0])[0].mean()
        for top in (1000, 4095)
    ]
    assert means[0] > 1.5 * means[1]


# --- bands ------------------------------------------------------------------------------------------------------------

FIVE = RNG.integers(0, 256, (20, 24, 5)).astype(np.uint8)


PLANES = np.ascontiguousarray(np.moveaxis(FIVE, 2, 0))
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}
FIVE_BANDS = {
    "interleaved": tiff(FIVE, **BANDS),
    "planes": tiff(PLANES, photometric="minisblack", planarconfig="separate"),
    "pages": tiff(PLANES, photometric="minisblack"),
    "array": npy(FIVE),
    "array, bands first": npy(PLANES),
    "array of Fortran": npy(np.asfortranarray(FIVE)),
}


@pytest.mark.parametrize("kind", FIVE_BANDS)
def test_five_bands_are_five_channels(kind):
    np.testing.assert_array_equal(decode(FIVE_BANDS[kind], 5), FIVE)
    if kind == "pages":  # any other number of channels is made of the first
        np.testing.assert_array_equal(decode(FIVE_BANDS[kind], 1)[:, :, 0], PLANES[0])
    else:
        with pytest.raises(Unreadable, match=r"of 5 bands; in_chans is 4"):
            decode(FIVE_BANDS[kind], 4)


def test_bands_that_do_not_fit_are_named_with_both_numbers(tmp_path):
    root = write(tmp_path / "data", ".tif", [tiff(FIVE, **BANDS)] * 3)
    assert opened(root, tmp_path, channels=5).pixels(0).shape == (20, 24, 5)
    with pytest.raises(DataError, match=r"3 of them: a TIFF of 5 bands; in_chans is 3; the first is 000\.tif"):
        opened(root, tmp_path, channels=3)


def test_crops_of_many_bands_are_those_of_each_band():
    many = RNG.integers(0, 256, (64, 48, 9)).astype(np.uint8)
    crop = decode_crop(many, 9, (64, 48), (4, 4, 44, 60), SIZE, flip=True)
    for band in range(9):
        alone = decode_crop(many[:, :, band : band + 1], 1, (64, 48), (4, 4, 44, 60), SIZE, flip=True)
        np.testing.assert_array_equal(crop[:, :, band], alone[:, :, 0])


def test_a_run_on_five_bands_measures_their_mean(tmp_path):
    root = write(tmp_path / "data", ".tif", [tiff(FIVE + np.uint8(number), **BANDS) for number in range(12)])
    model = {"in_chans": 5, "img_size": 16, "patch_size": 4}
    parts = {"dataset": {"uri": str(root)}, "model": model, "optimization": {"global_batch_size": 4}}
    data = open_training_data(PretrainSpec.parse({"kind": "pretrain"} | parts), place(tmp_path))
    assert len(data.mean) == 5


@pytest.mark.parametrize("data", [png16(RGB16), tiff(FIVE, **BANDS), npy(FIVE)])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_truncated_files_are_unreadable(data, share):
    with pytest.raises(Unreadable):
        decode(data[: int(len(data) * share)], 3)
    with pytest.raises(Unreadable):
        examine(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([{"a": 1}], dtype=object)), "an array of object"),
        (npy(np.zeros((3, 4, 5, 6), np.uint8)), "an array of shape"),
        (npy(np.zeros((70, 80, 65), np.uint8)), "65 bands"),
        (npy(np.zeros((4, 4), np.complex64)), "an array of complex64"),
        (npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4), }    ", b"(99999, 9999)}"), "too many pixels"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_are_unreadable(data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode(data, 3)


@pytest.mark.parametrize("form", ["PPM", "GIF", "JPEG"])
@pytest.mark.parametrize("suffix", [".ppm", ".pnm", ".gif", ".jfif", ".jpe"])
def test_suffixes_that_people_use_are_read(tmp_path, form, suffix):
    image = Image.fromarray(RNG.integers(0, 256, (20, 24, 3)).astype(np.uint8))
    images = opened(write(tmp_path / "data", suffix, [saved(image, form)]), tmp_path)
    assert images.pixels(0).shape == (20, 24, 3)


def test_kinds_that_cannot_be_read_count_as_unreadable(tmp_path):
    root = write(tmp_path / "data", ".png", [png16(TWELVE)] * 3)
    for name in ("a.HEIC", "b.heic", "c.dng"):
        (root / name).write_bytes(b"")
    (root / "notes.txt").write_text("x")
    reasons = [bad.reason for bad in opened(root, tmp_path).index.bad]
    assert [reason.split()[0] for reason in reasons] == [".heic", ".heic", ".dng"]
    with pytest.raises(DataError, match=r"3 of 6 images.*2 of them: \.heic files cannot be read.*convert.*a\.HEIC"):
        opened(root, tmp_path, max_bad_fraction=0.1)
    assert len(opened(root, tmp_path, max_bad_fraction=0.1, exclude=["*.heic", "*.HEIC", "*.dng"])) == 3


def test_the_scale_is_in_words():
    assert str(Scale({"uint16": (0.0, 4095.0), "uint8": (0.0, 255.0)})) == "uint16 0 to 4095, uint8 0 to 255"
    assert dataset("/d", value_range=[0, 1]).value_range == (0, 1)


def test_the_exported_processor_does_what_training_does():
    """It only multiplies and subtracts: black that is not 0 is in the mean."""
    model = ModelSpec.model_validate({"in_chans": 1, "img_size": 16, "patch_size": 4})
    values, mean, std = np.array([-1024.0, 0.0, 3071.0]), 0.3, 0.2
    found = preprocessor(model, (mean,), (std,), (-1024.0, 3071.0))
    seen = (values * found["rescale_factor"] - found["image_mean"][0]) / found["image_std"][0]
    np.testing.assert_allclose(seen, ((values + 1024) / 4095 - mean) / std)
    assert preprocessor(model, (mean,), (std,))["rescale_factor"] == 1 / 255


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ({}, (0, 255)), ({"uint8": (0, 255)}, (0, 255)), ({"uint16": (0, 4095)}, (0, 4095)),
        ({"uint16": (0, 4095), "uint8": (0, 255)}, (0, 255)),
    ],
)  # fmt: skip
def test_checkpoints_know_the_range_of_their_images(scale, expected):
    known = {
        "step": 1,
        "samples": 1,
        "dataset_fingerprint": "",
        "mean": (0.5,),
        "std": (0.5,),
        "workers": 1,
        "metrics": {},
    }
    metadata = Metadata.model_validate(known | {"scale": scale})
    assert (metadata.value_range, metadata.held_out_by_class) == (expected, False)

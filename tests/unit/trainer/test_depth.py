"""Images of more than eight bits, of floats and of bands: one scale for a whole dataset."""

import io
import re
import sys
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


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((8, 8), np.uint8), "all black: 0 is their only value"),
        (np.dstack([np.full((8, 8, 3), 20), np.full((8, 8), 255)]).astype(np.uint8), r"value_range: \[0, 20\]"),
    ],
)  # fmt: skip
def test_black_images_are_told_of(tmp_path, values, told):
    root = write(tmp_path / "data", ".png", [saved(values, "PNG")])
    assert re.search(told, notice(opened(root, tmp_path), "value_range_dark"))


@pytest.mark.parametrize("value", [0.0, 5.5, -1e20, 3.4e38, 2.0**60, sys.float_info.max, -sys.float_info.max])
def test_images_of_one_value_have_a_scale(tmp_path, value):
    root = write(tmp_path / "data", ".npy", [npy(np.full((8, 8), value))])
    images = opened(root, tmp_path, channels=1)
    low, high = images.scale.ranges["float64"]
    assert dataset("/d", value_range=[low, high]).value_range == (low, high)
    assert np.isfinite([low, high]).all()
    assert len(np.unique(images.pixels(0))) == 1


@pytest.mark.parametrize("wanted", ["auto", [0, 1]])
def test_images_without_a_finite_value_are_told_of(tmp_path, wanted):
    root = write(tmp_path / "data", ".npy", [npy(np.full((8, 8), np.nan, np.float32))])
    images = opened(root, tmp_path, channels=1, value_range=wanted)
    assert "1 float32 images have no finite value" in notice(images, "value_range_not_finite")
    assert images.pixels(0).max() == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0, 0.4), 0.4), ((0, 0.6), 1), ((0, 1.1), 1), ((0, 1.2), 1.2), ((0, 100), 100), ((0, 130), 255), ((-1, 1), 1)],
)
def test_the_scale_of_floats(tmp_path, values, expected):
    root = write(tmp_path / "data", ".npy", [npy(np.array([values], np.float64))])
    assert opened(root, tmp_path, channels=1).scale.ranges == {"float64": (min(0, values[0]), expected)}


@pytest.mark.parametrize(("top", "cuts"), [(1000, True), (2000, True), (3000, False), (9000, False)])
def test_a_range_that_cuts_most_values_off_is_told_of(tmp_path, top, cuts):
    root = write(tmp_path / "data", ".png", [png16(TWELVE)])
    notices = opened(root, tmp_path, channels=1, value_range=[0, top]).notices
    assert [each.code for each in notices if each.code.startswith("value_range")] == ["value_range_cuts"] * cuts
    assert not cuts or f"those outside 0 to {top} become black or white" in notices[-1].message


def test_transparency_has_no_part_in_the_scale(tmp_path):
    alpha = np.full((20, 24, 1), 65535, np.uint16)
    for number, data in enumerate(
        [
            tiff(np.dstack([RGB16, alpha]), photometric="rgb", extrasamples=["unassalpha"]),
            cv2.imencode(".png", np.dstack([RGB16[:, :, ::-1], alpha]))[1].tobytes(),
        ]
    ):
        images = opened(write(tmp_path / str(number), ".tif", [data]), tmp_path)
        assert images.scale.ranges == {"uint16": (0, 4095)}
        np.testing.assert_allclose(images.pixels(0), RGB16 / 4095 * 255, atol=0.5)
    infrared = tiff(np.dstack([RGB16, alpha]), photometric="rgb", extrasamples=["unspecified"])
    images = opened(write(tmp_path / "infrared", ".tif", [infrared]), tmp_path, channels=4)
    assert images.scale.ranges == {"uint16": (0, 65535)}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG", "16 bits"])
def test_colours_are_scaled_before_they_become_grey(kind):
    pixels = np.full((16, 16, 3), (200, 50, 0), np.uint8)
    data = png16(pixels.astype(np.uint16)) if kind == "16 bits" else saved(pixels, kind)
    scale = Scale({"uint8": (0, 100), "uint16": (0, 100)})
    expected = round(0.299 * 255 + 0.587 * 127.5)
    np.testing.assert_allclose(decode(data, 1, scale), expected, atol=3 if kind == "JPEG" else 1)
    crop = decode_crop(data, 1, (16, 16), (0, 0, 16, 16), (4, 4), flip=False, scale=scale)
    np.testing.assert_allclose(crop, expected, atol=3 if kind == "JPEG" else 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P5 2 1 4095\n\x01\x00\x0f\xff", [[[256], [4095]]]),
        (b"P5 2 1\n# c\n65535\n\x01\x00\x0f\xff", [[[256], [4095]]]),
        (b"P2\n2 1\n#c\n4095\n256 4095\n", [[[256], [4095]]]),
        (b"P6 1 1 4095\n\x02\x00\x01\x00\x0f\xff", [[[512, 256, 4095]]]),
    ],
)  # fmt: skip
def test_the_values_of_a_deep_ppm_are_those_stored(data, expected):
    scale = Scale({"uint16": (0, 4095)})
    pixels = decode(data, np.shape(expected)[2], scale)
    np.testing.assert_array_equal(pixels, scale.to_bytes(np.array(expected, np.uint16)))
    assert (examine(data).type, examine(data).high) == ("uint16", 4095)


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


@pytest.mark.parametrize(
    ("shape", "height", "width", "bands"),
    [
        ((8, 8, 20), 8, 8, 20), ((20, 8, 8), 8, 8, 20), ((3, 8, 9), 8, 9, 3), ((8, 9, 3), 8, 9, 3),
        ((6, 6, 6), 6, 6, 6), ((5, 30, 5), 5, 30, 5),
    ],
)  # fmt: skip
def test_the_bands_of_an_array(shape, height, width, bands):
    data = npy(RNG.integers(0, 256, shape).astype(np.uint8))
    facts = examine(data)
    assert (facts.height, facts.width, facts.bands) == (height, width, bands)
    assert decode(data, bands).shape == (height, width, bands)


def palette_pages(pages: int, kind: type = np.uint8) -> bytes:
    colours = np.zeros((3, 2 ** (8 * np.dtype(kind).itemsize)), np.uint16)
    colours[0] = 65535
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in range(pages):
            writer.write(np.full((8, 8), page, kind), photometric="palette", colormap=colours, contiguous=False)
    return file.getvalue()


def cyan(kind: type) -> bytes:
    ink = np.zeros((8, 8, 4), kind)
    ink[:, :, 0] = np.iinfo(kind).max
    return tiff(ink, photometric="separated")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (cyan(np.uint8), (0, 255, 255)), (cyan(np.uint16), (0, 255, 255)),
        (tiff(np.zeros((8, 8, 4), np.uint16), photometric="separated"), (255, 255, 255)),
        (saved(Image.new("LAB", (8, 8), (200, 128, 128)), "TIFF"), (194, 194, 194)),
        (palette_pages(1), (255, 0, 0)), (palette_pages(3), (255, 0, 0)),
    ],
)  # fmt: skip
def test_colours_of_a_tiff_become_rgb(data, expected):
    assert decode(data, 3)[0, 0].tolist() == list(expected)
    facts = examine(data)
    assert (facts.bands, facts.pages, facts.colour, facts.type) == (3, 1, True, "uint8")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.zeros((8, 8, 4), np.float32), photometric="separated"), "a CMYK TIFF of 32 bits: convert it to RGB"),
        (tiff(np.zeros((8, 8, 3), np.uint16), photometric="cielab"), "a CIELAB TIFF of 16 bits: convert it to RGB"),
        (palette_pages(1, np.uint16), "a palette TIFF of 16 bits: convert it to RGB"),
    ],
)  # fmt: skip
def test_colours_of_a_tiff_that_cannot_be_converted(data, reason):
    for read in (examine, lambda raw: decode(raw, 3)):
        with pytest.raises(Unreadable, match=reason):
            read(data)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_with_alpha_in_a_tiff(kind):
    top = np.iinfo(kind).max
    pixels = np.full((8, 8, 2), top // 5, kind)
    pixels[:, :, 1] = top
    data = tiff(pixels, photometric="minisblack", extrasamples=["unassalpha"])
    assert decode(data, 1)[0, 0].tolist() == [51]
    assert decode(data, 3)[0, 0].tolist() == [51] * 3
    assert decode(data, 4)[0, 0].tolist() == [51, 51, 51, 255]
    assert examine(data).high == top // 5
    bands = tiff(pixels, photometric="minisblack", extrasamples=["unspecified"])
    assert decode(bands, 2)[0, 0].tolist() == [51, 255]
    with pytest.raises(Unreadable, match="a TIFF of 2 bands; in_chans is 3"):
        decode(bands, 3)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_fourth_sample_that_is_no_transparency_is_read(kind):
    pixels = RNG.integers(0, np.iinfo(kind).max, (8, 8, 4)).astype(kind)
    data = tiff(pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode(data, 4), Scale().to_bytes(pixels))
    np.testing.assert_array_equal(decode(data, 3), Scale().to_bytes(pixels[:, :, :3]))
    assert examine(data).high == pixels.max()


def pages_of(*pages: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    writing = {"bigtiff": options.pop("bigtiff", False), "byteorder": options.pop("byteorder", None)}
    with tifffile.TiffWriter(file, **writing) as writer:
        for page in pages:
            writer.write(page, contiguous=False, photometric="minisblack", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "options", [{"compression": "jpeg2000"}, {"compression": "png"}, {"bigtiff": True, "byteorder": ">"}]
)
def test_pages_of_which_the_first_cannot_be_read_alone_are_unreadable(options):
    """Training would read the first page with Pillow, which can do less than what reads all pages."""
    data = pages_of(*PLANES[:2], **options)
    for read in (examine, lambda raw: decode(raw, 1)):
        with pytest.raises(Unreadable, match="cannot identify"):
            read(data)


def test_the_scale_is_that_of_the_pages_used(tmp_path):
    pages = [np.full((20, 24), value, np.uint16) for value in (200, 4000)]
    root = write(tmp_path / "data", ".tif", [pages_of(*pages)])
    assert opened(root, tmp_path, channels=1).scale.ranges == {"uint16": (0, 255)}
    assert opened(root, tmp_path, channels=2).scale.ranges == {"uint16": (0, 4095)}


@pytest.mark.parametrize("bits", [1, 4])
def test_pages_of_few_bits_have_the_values_of_the_first_alone(bits):
    image = Image.fromarray(np.eye(8, dtype=bool))
    data = saved(image, "TIFF", compression="group4", save_all=True, append_images=[image])
    if bits == 4:
        data = pages_of(*[np.eye(8, dtype=np.uint8) * 15] * 2, bitspersample=4)
    np.testing.assert_array_equal(decode(data, 1), np.eye(8)[:, :, None] * 255)
    np.testing.assert_array_equal(decode(data, 2), np.eye(8)[:, :, None].repeat(2, 2) * 255)
    assert (examine(data).type, examine(data).stack_high) == ("uint8", 255)


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
        (npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4), }", b"(4, 4),  "), "TokenError"),
        (npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4), }", b"(4, 4L)" + b"(("), "Error"),
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

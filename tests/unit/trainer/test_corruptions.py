"""The 15 corruptions, held to their definitions, on made pictures and on photographs."""

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.evaluation.corruptions.blurs import DEFOCUS, GLASS, MOTION
from trainer.evaluation.corruptions.catalogue import SEVERITIES, corrupted
from trainer.evaluation.corruptions.digital import CONTRAST, JPEG_QUALITY, PIXELATE
from trainer.evaluation.corruptions.noises import GAUSSIAN_DEVIATION, IMPULSE_SHARE, SHOT_PHOTONS
from trainer.evaluation.corruptions.weather import BRIGHTNESS_SHIFT, FOG, FROST
from trainer.spec.evaluate import CORRUPTIONS

SHARED = Path(__file__).parents[4] / "shared/data"
BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
FIXED = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
"""These draw nothing at random."""
FIRST_TWO = ("snow", "frost", "fog", "elastic_transform")
"""Their constants trade one thing for another from severity to severity: frost also darkens, fog gets rougher,
and the affine part of elastic_transform, which changes most values, is greater at the first two severities."""


def grey(value: int, side: int = 128, channels: int = 3):
    return np.full((side, side, channels), value, dtype=np.uint8)


def textured(height: int = 64, width: int = 64, channels: int = 3):
    """Broad shapes under fine noise, so that blurs and shifts show."""
    random = np.random.default_rng(5)
    coarse = random.integers(40, 200, (8, 8, channels)).repeat(-(-height // 8), 0).repeat(-(-width // 8), 1)
    fine = random.integers(-30, 30, (height, width, channels))
    return (coarse[:height, :width] + fine).astype(np.uint8)


def squared_change(pixels, name, severity, key=0):
    return ((corrupted(pixels, name, severity, key).astype(float) - pixels) ** 2).mean()


def cropped(image: Image.Image, side: int):
    scale = side / min(image.size)
    image = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    return np.asarray(image)[:side, :side]


@pytest.fixture(scope="module")
def pictures():
    """Photographs at 224 pixels and CIFAR's at 32, a few of each by the side."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent: it has the photographs")
    with tarfile.open(SHARED / "photos/photos-000.tar") as tar:
        photos = [cropped(Image.open(tar.extractfile(member)), 224) for member in tar.getmembers()[:6]]
    rows = pq.read_table(SHARED / "cifar10/test.parquet").slice(0, 100).column("image").to_pylist()
    small = [cropped(Image.open(io.BytesIO(row["bytes"])), 32) for row in rows]
    return {224: photos, 32: small}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (32, 32, 3), (40, 23, 1), (23, 61, 5), (9, 8, 13)])
def test_any_size_and_number_of_channels_is_changed_and_keeps_its_form(name, shape):
    pixels = textured(*shape)
    before = pixels.copy()
    for severity in SEVERITIES:
        out = corrupted(pixels, name, severity, 3)
        assert out.dtype == np.uint8
        assert out.shape == shape
    assert (out != pixels).any()
    assert (pixels == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_result_depends_on_image_corruption_and_severity_alone(name):
    pixels, others = textured(32, 32), textured(32, 48)
    forwards = [corrupted(pixels, name, 3, key) for key in range(4)]
    corrupted(others, name, 3, 9)
    backwards = [corrupted(pixels, name, 3, key) for key in reversed(range(4))][::-1]
    assert all((one == other).all() for one, other in zip(forwards, backwards, strict=True))
    if name in FIXED:
        assert (forwards[0] == forwards[1]).all()
    else:
        assert len({out.tobytes() for out in forwards}) == 4


def test_severities_and_corruptions_draw_different_numbers():
    flat = grey(128)
    one, other = (corrupted(flat, "impulse_noise", severity, 0) != 128 for severity in (4, 5))
    both = (one & other).mean()
    assert both == pytest.approx(one.mean() * other.mean(), rel=0.1)  # the same numbers would give one.mean()


def test_pixels_that_are_not_contiguous_are_corrupted_alike():
    pixels = textured(32, 40)
    view = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    for name in CORRUPTIONS:
        assert (corrupted(view, name, 4, 1) == corrupted(pixels, name, 4, 1)).all()


@pytest.mark.parametrize("side", [224, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pictures_change_more_with_each_severity(pictures, side, name):
    change = [
        np.mean([squared_change(pixels, name, severity, key) for key, pixels in enumerate(pictures[side])])
        for severity in SEVERITIES
    ]
    if name in FIRST_TWO:
        assert change[0] < change[1]
    else:
        # Glass's third and fourth severity swap the same share of a small picture's pixels.
        assert all(more > 0.97 * less for less, more in itertools.pairwise(change))
        assert change[4] > 1.2 * change[0]
    assert change[0] > 5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_deviation_defined(severity):
    out = corrupted(grey(128, 224), "gaussian_noise", severity, 0) / 255
    middle = out[(out > 0) & (out < 1)] - 128 / 255
    inside = GAUSSIAN_DEVIATION[severity - 1]
    # Of what is not clipped, the share within one deviation of all values is that of a normal distribution.
    assert (abs(middle) < inside).sum() / out.size == pytest.approx(0.6827, abs=0.01)
    assert out.mean() == pytest.approx(128 / 255, abs=0.004)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_is_poisson_of_the_photons(severity):
    photons, value = SHOT_PHOTONS[severity - 1], 51  # a fifth of white: hardly ever clipped
    out = corrupted(grey(value, 224), "shot_noise", severity, 0) / 255
    assert out.mean() == pytest.approx(0.2, rel=0.03)
    if severity < 4:
        assert out.var() == pytest.approx(0.2 / photons, rel=0.03)
    levels = np.rint(out * photons)
    assert np.abs(out - np.minimum(levels / photons, 1)).max() < 0.003  # whole photons


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_makes_the_share_defined_black_or_white(severity):
    out = corrupted(grey(128, 224), "impulse_noise", severity, 0)
    share = IMPULSE_SHARE[severity - 1]
    assert (out == 0).mean() == pytest.approx(share / 2, rel=0.07)
    assert (out == 255).mean() == pytest.approx(share / 2, rel=0.07)
    assert set(np.unique(out)) == {0, 128, 255}
    assert (out[..., 0] != out[..., 1]).any()  # each channel by itself


def high_frequencies(pixels):
    """Energy above an eighth of the sampling rate."""
    spectrum = np.abs(np.fft.fft2(pixels.astype(float).mean(axis=2))) ** 2
    rows, columns = (np.abs(np.fft.fftfreq(side)) for side in pixels.shape[:2])
    return spectrum[np.hypot(rows[:, None], columns[None]) > 1 / 8].sum()


@pytest.mark.parametrize("name", BLURS)
def test_blurs_take_away_high_frequencies(pictures, name):
    whole, first, fifth = (
        sum(
            high_frequencies(corrupted(pixels, name, severity, key) if severity else pixels)
            for key, pixels in enumerate(pictures[224])
        )
        for severity in (0, 1, 5)
    )
    assert fifth < first < 0.6 * whole


@pytest.mark.parametrize("name", BLURS)
def test_blurs_keep_what_is_flat(name):
    assert (corrupted(grey(77, 64), name, 5, 0) == 77).all()


def point(side: int = 224):
    pixels = grey(0, side, 1)
    pixels[side // 2, side // 2] = 255
    return pixels


def spread_of(out):
    """The deviation of a blurred point in y and in x, and its centre."""
    weights = out[..., 0] / out.sum()
    y, x = np.mgrid[: out.shape[0], : out.shape[1]]
    centre = (weights * y).sum(), (weights * x).sum()
    return np.sqrt((weights * (y - centre[0]) ** 2).sum()), np.sqrt((weights * (x - centre[1]) ** 2).sum()), centre


@pytest.mark.parametrize(("side", "block"), [(224, 9), (448, 15)])
def test_defocus_is_a_disc_of_the_radius_scaled_with_the_picture(side, block):
    pixels = grey(0, side, 1)
    half = slice(side // 2 - block // 2, side // 2 + block // 2 + 1)
    pixels[half, half] = 255  # a point would be lost in rounding
    radius = DEFOCUS[1][0] * side / 224
    down, right, centre = spread_of(corrupted(pixels, "defocus_blur", 2, 0))
    expected = np.sqrt(radius**2 / 4 + (block**2 - 1) / 12)
    assert (down, right) == pytest.approx((expected, expected), rel=0.06)
    assert centre == pytest.approx((side // 2, side // 2), abs=0.05)


def test_motion_smears_to_one_side_along_a_line():
    radius, sigma = MOTION[0]
    bar = grey(0, 224, 1)
    bar[:, 112] = 255  # a vertical line: whatever the angle, it is smeared horizontally by sigma times its cosine
    rows = [corrupted(bar, "motion_blur", 1, key)[112, :, 0].astype(float) for key in range(40)]
    reach = [np.flatnonzero(row > 2) - 112 for row in rows]
    for offsets in reach:
        assert min(abs(offsets.min()), abs(offsets.max())) <= 1  # to one side alone
        assert sigma * 1.2 < np.ptp(offsets) <= 2 * radius
    assert len({row.tobytes() for row in rows}) > 20  # angles vary


def test_glass_moves_pixels_no_further_than_its_rounds_allow():
    sigma, shift, rounds = GLASS[0]
    down, right, _ = spread_of(corrupted(np.full((224, 224, 1), 0, np.uint8) + point(), "glass_blur", 1, 0))
    assert max(down, right) < shift * rounds + 4 * sigma
    flat = np.where(np.arange(64)[None, :, None] < 32, 20, 220).astype(np.uint8).repeat(64, 0)
    changed = np.flatnonzero((corrupted(flat, "glass_blur", 1, 0)[..., 0] != flat[..., 0]).any(axis=0))
    assert 28 <= changed.min() <= changed.max() <= 35  # only near the edge


def test_zoom_leaves_the_centre_and_smears_the_rim():
    pixels = grey(0, 225, 1)
    pixels[112, 112] = pixels[20, 112] = 255
    out = corrupted(pixels, "zoom_blur", 3, 0)[..., 0]
    assert out[112, 112] > 200
    assert out[20, 112] < 60
    assert (out[1:20, 112] > 5).sum() > 8  # outwards: to 1.2 times its distance of 92 from the centre
    assert (out[22:100] == 0).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_shifts_the_value_and_keeps_hue_and_saturation(severity):
    shift = BRIGHTNESS_SHIFT[severity - 1]
    pixels = textured()
    # Both through Pillow's own HSV, which rounds to whole numbers.
    before, after = (
        np.asarray(Image.fromarray(image).convert("HSV")).astype(int)
        for image in (pixels, corrupted(pixels, "brightness", severity, 0))
    )
    assert np.abs(after[..., 2] - np.minimum(before[..., 2] + shift * 255, 255)).max() <= 1
    assert np.abs(after[..., 1] - before[..., 1]).mean() < 1.5
    hue = np.abs(after[..., 0] - before[..., 0])[before[..., 1] > 60]
    assert np.minimum(hue, 256 - hue).mean() < 1
    single = corrupted(grey(100, channels=1), "brightness", severity, 0)
    assert np.abs(single - min(255, 100 + shift * 255)).max() <= 0.501
    assert (corrupted(grey(0), "brightness", severity, 0) == round(shift * 255)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_about_the_mean_of_each_channel(severity):
    pixels = textured()
    mean = pixels.mean(axis=(0, 1))
    expected = (pixels - mean) * CONTRAST[severity - 1] + mean
    assert np.abs(corrupted(pixels, "contrast", severity, 0) - expected).max() <= 0.51


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_leaves_as_many_blocks_as_defined(severity):
    pixels = textured(40, 80)
    out = corrupted(pixels, "pixelate", severity, 0)
    share = PIXELATE[severity - 1]
    small = Image.fromarray(pixels).resize((int(80 * share), int(40 * share)), Image.BOX)
    assert (out == np.asarray(small.resize((80, 40), Image.BOX))).all()
    if severity in {2, 5}:  # whole blocks of 2 or 4 pixels
        block = round(1 / share)
        assert (out == out[::block, ::block].repeat(block, 0).repeat(block, 1)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillow_s_at_the_quality(severity):
    def reference(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY[severity - 1])
        return np.asarray(Image.open(file))

    colour, bands = textured(40, 56), textured(40, 56, 4)
    assert (corrupted(colour, "jpeg_compression", severity, 0) == reference(colour)).all()
    out = corrupted(bands, "jpeg_compression", severity, 0)
    assert all((out[..., band] == reference(bands[..., band])).all() for band in range(4))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_adds_a_fractal_and_compresses_to_the_brightest_value(severity):
    strength = FOG[severity - 1][0]
    pixels = grey(51, 224)
    pixels[0, 0] = 255
    out = corrupted(pixels, "fog", severity, 0)[1:] / 255
    fractal = (out * (1 + strength) - 0.2) / strength
    assert fractal.min() > -0.01
    assert fractal.max() < 1.01
    assert np.ptp(fractal) > 0.5
    assert (np.ptp(out, axis=2) == 0).all()  # grey
    neighbours = np.abs(np.diff(fractal[..., 0], axis=1)).mean()
    distant = np.abs(fractal[:, 60:, 0] - fractal[:, :-60, 0]).mean()
    assert distant > 4 * neighbours  # smooth: not noise
    assert (corrupted(grey(0), "fog", severity, 0) == 0).all()  # as defined: nothing is brighter than the brightest


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_weighs_picture_and_texture_as_defined(severity):
    own, added = FROST[severity - 1]
    dark, light = (corrupted(grey(value, 224), "frost", severity, 0).astype(float) for value in (0, 60))
    assert (light - dark).mean() == pytest.approx(60 * own, abs=1)  # the same texture over both
    texture = dark / 255 / added
    assert 0.35 < texture.mean() < 0.55
    assert texture.std() > 0.1
    assert texture.max() <= 1.01


def test_snow_whitens_and_its_flakes_grow_thicker():
    covered = []
    for severity in (1, 3, 5):
        out = corrupted(grey(100, 224), "snow", severity, 0)
        assert (out >= 100).all()
        assert (np.ptp(out, axis=2) == 0).all()
        covered.append((out > 200).mean())
    assert 0.001 < covered[0] < covered[1] < covered[2]


def test_snow_falls_alike_from_above_and_turned_by_half():
    out = corrupted(grey(100, 224, 1), "snow", 3, 0)[..., 0].astype(int)
    assert np.abs(out - out[::-1, ::-1]).max() <= 1


def bending(side, severity):
    """How far pixels move beside what an affine map explains, as a share of the side; a ramp shows it by its values."""
    ramp = np.linspace(30, 225, side).astype(np.uint8)[None, :, None].repeat(side, 0)
    inner = slice(side // 4, -side // 4)
    y, x = (grid[inner, inner].ravel() for grid in np.mgrid[:side, :side])
    affine, left = np.stack([y, x, np.ones_like(x)], axis=1), []
    for key in range(60):
        values = corrupted(ramp, "elastic_transform", severity, key)[inner, inner, 0].ravel().astype(float)
        left.append(np.std(values - affine @ np.linalg.lstsq(affine, values, rcond=None)[0]))
    return np.mean(left) / 195


def test_elastic_bends_by_its_strength():
    third, fourth, fifth = (bending(448, severity) for severity in (3, 4, 5))
    assert third * 224 == pytest.approx(12.2 * 3**-0.5 / (2 * np.pi**0.5 * 2.44), rel=0.15)  # smoothed uniform noise
    assert fourth / third == pytest.approx(17.08 / 12.2, rel=0.1)
    assert fifth / third == pytest.approx(29.28 / 12.2, rel=0.1)


def test_elastic_bends_small_pictures_as_far_for_their_size_as_large_ones():
    assert bending(32, 2) == pytest.approx(bending(224, 2), rel=0.3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "rain"}, "no corruption 'rain'"),
        ({"severity": 0}, "severity is 0"),
        ({"severity": 6}, "severity is 6"),
        ({"key": -1}, "key is -1"),
        ({"pixels": textured(7, 30)}, r"\(7, 30, 3\)"),
        ({"pixels": textured().astype(np.float32)}, "float32"),
        ({"pixels": textured()[..., 0]}, r"\(64, 64\)"),
    ],
)
def test_what_cannot_be_corrupted_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        corrupted(**{"pixels": textured(), "name": "fog", "severity": 1, "key": 0} | change)

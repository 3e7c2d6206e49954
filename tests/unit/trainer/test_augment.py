"""Random resized crops and flips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.augment import RATIO, crop_boxes, flips

SIDES = st.integers(1, 3000)
PAPER = (0.2, 1.0)


def boxes_of(height: int, width: int, n: int = 500, scale: tuple[float, float] = PAPER, **at):
    samples = np.arange(n)
    shape = (np.full(n, height), np.full(n, width))
    return crop_boxes(at.get("seed", 0), at.get("epoch", 0), samples, *shape, scale)


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5000), height=SIDES, width=SIDES)
@settings(deadline=None)
def test_crops_lie_in_their_image(seed, epoch, height, width):
    left, top, right, bottom = boxes_of(height, width, n=50, seed=seed, epoch=epoch).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left < right).all()
    assert (top < bottom).all()
    assert (right <= width).all()
    assert (bottom <= height).all()


@pytest.mark.parametrize("scale", [PAPER, (0.05, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize(("height", "width"), [(400, 500), (300, 300), (600, 400)])
def test_area_and_ratio_are_within_their_bounds(height, width, scale):
    left, top, right, bottom = boxes_of(height, width, n=2000, scale=scale).T
    wide, tall = right - left, bottom - top
    share = wide * tall / (height * width)
    assert share.min() >= scale[0] * 0.98  # sides are whole pixels
    assert share.max() <= scale[1] * 1.02
    assert (wide / tall).min() >= RATIO[0] * 0.98
    assert (wide / tall).max() <= RATIO[1] * 1.02


def test_crops_of_a_square_vary_over_all_of_the_bounds():
    left, top, right, bottom = boxes_of(1000, 1000, n=4000).T
    wide, tall = right - left, bottom - top
    share = wide * tall / 1e6
    assert share.min() < 0.22
    assert share.max() > 0.9
    assert abs(np.median(np.log(wide / tall))) < 0.02  # wide and tall ones in balance
    assert (wide / tall).min() < 0.77
    assert (wide / tall).max() > 1.3
    small = share < 0.4
    for offset, room in ((left, 1000 - wide), (top, 1000 - tall)):
        place = (offset / np.maximum(room, 1))[small]
        assert abs(place.mean() - 0.5) < 0.05
        assert place.min() < 0.02
        assert place.max() > 0.98


def test_crops_reach_every_edge_and_every_place_between_as_often():
    left, top, right, bottom = boxes_of(8, 8, n=8000).T
    for start, end in ((left, right), (top, bottom)):
        starts = start[end - start == 5]
        counts = np.bincount(starts, minlength=4)
        assert len(counts) == 4
        assert np.abs(counts - len(starts) / 4).max() < 5 * np.sqrt(len(starts) / 4)


def test_a_full_crop_of_a_square_takes_all_it_can():
    left, top, right, bottom = boxes_of(100, 100, scale=(1.0, 1.0)).T
    # Only an (almost) square box of the whole area fits; where ten tries miss it the whole image is taken.
    assert ((right - left) * (bottom - top) >= 9900).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 1000, (499, 0, 500, 1)), (1000, 1, (0, 499, 1, 500)), (30, 3000, (1480, 0, 1520, 30)),
     (3000, 30, (0, 1480, 30, 1520))],
)  # fmt: skip
def test_an_image_too_narrow_for_any_crop_gives_its_largest_central_one(height, width, expected):
    boxes = boxes_of(height, width, n=20, scale=(0.9, 1.0))
    assert {tuple(box) for box in boxes.tolist()} == {expected}


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_a_sample_s_crop_and_flip_do_not_depend_on_the_others(data, seed):
    n = data.draw(st.integers(2, 20))
    samples = np.array(data.draw(st.lists(st.integers(0, 2**40), min_size=n, max_size=n)))
    heights, widths = (np.array(data.draw(st.lists(SIDES, min_size=n, max_size=n))) for _ in range(2))
    together = crop_boxes(seed, 1, samples, heights, widths, PAPER)
    mirrored = flips(seed, 1, samples)
    one = data.draw(st.integers(0, n - 1))
    only = slice(one, one + 1)
    np.testing.assert_array_equal(
        crop_boxes(seed, 1, samples[only], heights[only], widths[only], PAPER)[0], together[one]
    )
    assert flips(seed, 1, samples[only])[0] == mirrored[one]


def test_crops_change_with_epoch_and_seed():
    first = boxes_of(300, 400)
    assert (boxes_of(300, 400, epoch=1) != first).any(axis=1).mean() > 0.99
    assert (boxes_of(300, 400, seed=1) != first).any(axis=1).mean() > 0.99


def test_every_second_image_is_mirrored():
    samples = np.arange(10_000)
    mirrored = flips(0, 0, samples)
    assert mirrored.dtype == np.bool_
    assert abs(mirrored.mean() - 0.5) < 0.02
    assert abs((mirrored == flips(0, 1, samples)).mean() - 0.5) < 0.02

"""Stratified subsets: how many of each class, nested, and the same for a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.subsets import stratified, validation_split

LABELS = st.lists(st.integers(-1, 6), min_size=1, max_size=200).map(np.array)
SHARES = st.floats(0.001, 1)


def counts(labels: np.ndarray) -> dict[int, int]:
    values, sizes = np.unique(labels[labels >= 0], return_counts=True)
    return dict(zip(values.tolist(), sizes.tolist(), strict=True))


@given(LABELS, SHARES, st.integers(0, 2**31 - 1))
def test_a_subset_has_the_share_of_each_class_and_at_least_one_image(labels, share, seed):
    rows = stratified(labels, share, seed)
    assert (np.diff(rows) > 0).all()
    chosen = counts(labels[rows])
    assert sum(chosen.values()) == len(rows), "rows without a class are never chosen"
    for label, size in counts(labels).items():
        assert chosen[label] == 1 or abs(chosen[label] - share * size) <= 0.5 + 1e-9


@given(LABELS, st.tuples(SHARES, SHARES), st.integers(0, 2**31 - 1))
def test_a_smaller_share_is_part_of_a_larger_one(labels, shares, seed):
    smaller, larger = (set(stratified(labels, share, seed).tolist()) for share in sorted(shares))
    assert smaller <= larger


@given(LABELS, st.integers(0, 2**31 - 1))
def test_a_split_has_all_labelled_rows_once_and_every_class_to_fit_on(labels, seed):
    fitted, held = validation_split(labels, seed)
    assert sorted([*fitted, *held]) == np.flatnonzero(labels >= 0).tolist()
    validated = counts(labels[held])
    for label, size in counts(labels).items():
        expected = 0 if size == 1 else max(1, int(0.2 * size + 0.5))
        assert validated.get(label, 0) == expected < size


def test_subsets_are_fixed_for_a_seed_and_differ_between_seeds():
    labels = np.arange(1000) % 10
    assert stratified(labels, 0.01, 0).tolist() == stratified(labels, 0.01, 0).tolist()
    assert stratified(labels, 0.01, 0).tolist() != stratified(labels, 0.01, 1).tolist()
    assert validation_split(labels, 0)[1].tolist() != validation_split(labels, 1)[1].tolist()
    # The validation images of a subset are none of its first ones: its order is another.
    assert set(validation_split(labels, 0)[1]) != set(stratified(labels, 0.2, 0))


def test_every_image_is_chosen_about_equally_often():
    labels = np.repeat([0, 1], [300, 30])
    chosen = np.zeros(330)
    for seed in range(400):
        chosen[stratified(labels, 0.1, seed)] += 1
    assert chosen.sum() == 400 * 33
    assert abs(chosen / 400 - 0.1).max() < 5 * np.sqrt(0.1 * 0.9 / 400)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share is"):
        stratified(np.array([0, 1]), share, 0)

"""Which sample comes when: pure functions of seed, epoch and sample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import sampler
from trainer.data.sampler import batch_samples, hash64, mask_orders, permutation, uniform

STREAMS = [sampler.ORDER, sampler.CROP_AREA, sampler.CROP_RATIO, sampler.CROP_LEFT, sampler.CROP_TOP, sampler.FLIP,
           sampler.MASK, sampler.SPLIT]  # fmt: skip
SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, epoch=st.integers(0, 5000), n=st.integers(1, 500))
@settings(deadline=None)
def test_an_epoch_visits_every_sample_once(seed, epoch, n):
    order = permutation(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, permutation(seed, epoch, n))


def test_a_run_that_goes_on_under_a_later_version_sees_the_samples_it_would_have_seen():
    """A job paused before an upgrade resumes with the same order, crops and masks: these were written down once."""
    assert permutation(7, 3, 10).tolist() == [6, 1, 0, 4, 2, 3, 9, 8, 7, 5]
    assert permutation(2**32 - 1, 5000, 10).tolist() == [8, 6, 7, 4, 0, 1, 2, 3, 5, 9]
    bits = [9144484447640142146, 9864292736405974103, 17013905254877808129]
    assert hash64(7, 5, np.array([0, 1, 10**9]), sampler.FLIP).tolist() == bits
    assert uniform(7, 3, np.arange(2), sampler.CROP_AREA).tolist() == [0.9099798692561226, 0.22456784944344743]
    assert mask_orders(7, 3, np.array([0, 1]), 9).tolist() == [[0, 2, 1, 7, 3, 6, 8, 5, 4], [3, 7, 8, 1, 2, 5, 6, 0, 4]]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_place_of_an_epoch_gets_every_sample_about_equally_often():
    n, epochs = 8, 4000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), permutation(7, epoch, n)] += 1
    chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)  # (n - 1)**2 degrees of freedom


@given(seed=SEEDS, world=st.sampled_from([1, 2, 3, 4, 6]), batches=st.integers(1, 4), rest=st.integers(0, 11))
@settings(deadline=None)
def test_any_number_of_workers_shares_the_same_global_batches(seed, world, batches, rest):
    batch, n = 12, 12 * batches + rest
    order = permutation(seed, 3, n)
    seen = []
    for step in range(n // batch):
        shares = [batch_samples(order, step, batch, rank, world) for rank in range(world)]
        assert {len(share) for share in shares} == {batch // world}
        np.testing.assert_array_equal(np.concatenate(shares), batch_samples(order, step, batch))
        seen += np.concatenate(shares).tolist()
    assert len(seen) == len(set(seen)) == batches * batch  # nothing twice, the remainder dropped


def test_the_remainder_dropped_is_another_one_each_epoch():
    dropped = [set(permutation(0, epoch, 100)[96:].tolist()) for epoch in range(20)]
    assert len(set().union(*dropped)) > 30


@given(seed=SEEDS, epoch=st.integers(0, 5000), stream=st.sampled_from(STREAMS), data=st.data())
@settings(deadline=None)
def test_a_sample_s_hash_does_not_depend_on_its_batch(seed, epoch, stream, data):
    samples = np.array(data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=30)))
    together = hash64(seed, epoch, samples, stream)
    alone = [hash64(seed, epoch, samples[i : i + 1], stream)[0] for i in range(len(samples))]
    assert together.tolist() == alone
    square = hash64(seed, epoch, np.stack([samples, samples]), stream)
    np.testing.assert_array_equal(square, np.stack([together, together]))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_uniform_is_uniform(seed, stream):
    values = uniform(seed, 2, np.arange(20_000), stream)
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=100, range=(0, 1))
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert abs(chi_square - 99) < 5 * np.sqrt(2 * 99)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.04


def test_every_bit_of_the_hash_is_a_fair_coin():
    bits = hash64(0, 0, np.arange(20_000), sampler.FLIP)[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02


def test_streams_epochs_and_seeds_are_unrelated():
    samples = np.arange(5000)
    draws = [uniform(0, 0, samples, stream) for stream in STREAMS]
    draws += [uniform(0, 1, samples, STREAMS[0]), uniform(1, 0, samples, STREAMS[0]), uniform(1, 1, samples, 1)]
    related = np.abs(np.corrcoef(draws)) - np.eye(len(draws))
    assert related.max() < 0.07


@given(seed=SEEDS, epoch=st.integers(0, 5000), patches=st.integers(4, 300))
@settings(deadline=None, max_examples=50)
def test_mask_orders_are_permutations_of_the_patches(seed, epoch, patches):
    orders = mask_orders(seed, epoch, np.arange(5), patches)
    assert orders.shape == (5, patches)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(patches), (5, 1)))


def test_a_sample_s_mask_is_its_own_and_the_epoch_s():
    together = mask_orders(0, 1, np.array([4, 9, 2]), 196)
    np.testing.assert_array_equal(mask_orders(0, 1, np.array([9]), 196)[0], together[1])
    assert (mask_orders(0, 2, np.array([9]), 196)[0] != together[1]).any()
    assert (together[0] != together[1]).any()


def test_every_patch_and_every_pair_of_patches_is_visible_equally_often():
    n, patches, visible = 20_000, 16, 4
    orders = mask_orders(3, 0, np.arange(n), patches)
    shown = np.zeros((n, patches))
    np.put_along_axis(shown, orders[:, :visible], 1, axis=1)
    expected = n * visible / patches
    assert np.abs(shown.sum(axis=0) - expected).max() < 5 * np.sqrt(expected)
    pairs = shown.T @ shown
    off_diagonal = pairs[~np.eye(patches, dtype=bool)]
    expected_pair = n * visible * (visible - 1) / (patches * (patches - 1))
    assert np.abs(off_diagonal - expected_pair).max() < 5 * np.sqrt(expected_pair)

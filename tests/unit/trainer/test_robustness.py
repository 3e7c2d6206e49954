"""Corruption errors relative to another evaluation."""

import pytest

from trainer.evaluation.robustness import mean_corruption_error, relative_corruption_error

ERRORS = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "snow": [0.2, 0.2, 0.2, 0.2, 0.2]}
REFERENCE = {"snow": [0.4, 0.4, 0.4, 0.4, 0.4], "fog": [0.2, 0.3, 0.4, 0.5, 0.6]}


def test_each_corruption_counts_the_same_by_its_sum_over_severities():
    assert mean_corruption_error(ERRORS, REFERENCE) == pytest.approx((1.5 / 2.0 + 1.0 / 2.0) / 2)
    assert mean_corruption_error(REFERENCE, REFERENCE) == 1


def test_without_a_reference_it_is_the_plain_mean_of_the_errors():
    assert mean_corruption_error(ERRORS) == pytest.approx((0.3 + 0.2) / 2)


def test_the_relative_error_counts_what_a_corruption_adds():
    value = relative_corruption_error(ERRORS, 0.1, REFERENCE, 0.2)
    assert value == pytest.approx((1.0 / 1.0 + 0.5 / 1.0) / 2)
    assert relative_corruption_error(ERRORS, 0.3, REFERENCE, 0.2) == pytest.approx((0.0 - 0.5) / 2)


@pytest.mark.parametrize(
    ("errors", "reference", "named"),
    [
        ({"fog": [0.1]}, REFERENCE, "differ in: snow"),
        ({}, {}, "none at all"),
        ({"fog": [0.1, 0.2]}, {"fog": [0.1]}, "fog has 2 severities, the reference 1"),
        ({"fog": [1.5]}, {"fog": [0.1]}, "not in 0..1"),
        ({"fog": [float("nan")]}, {"fog": [0.1]}, "not in 0..1"),
        ({"fog": [0.5]}, {"fog": [0.0]}, "under fog"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(errors, reference, named):
    with pytest.raises(ValueError, match=named):
        mean_corruption_error(errors, reference)

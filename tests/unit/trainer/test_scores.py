"""Accuracy, the confusion matrix and intervals, compared with scikit-learn, scipy and values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, top_k_accuracy_score

from trainer.evaluation.scores import Predictions, confusion, over_seeds, per_class, summarised, top1, wilson


def random_predictions(images: int = 500, classes: int = 8) -> tuple[Predictions, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    scores = rng.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]
    return Predictions(torch.tensor(scores, dtype=torch.float32)), labels


def test_accuracies_and_the_confusion_matrix_are_those_of_scikit_learn():
    predictions, labels = random_predictions()
    predicted = predictions.predicted
    assert top1(predicted, labels) == accuracy_score(labels, predicted)
    assert predictions.top5(labels) == pytest.approx(top_k_accuracy_score(labels, predictions.scores.numpy(), k=5))
    matrix = confusion(predicted, labels, 8)
    np.testing.assert_array_equal(matrix, confusion_matrix(labels, predicted))
    np.testing.assert_allclose(per_class(matrix), recall_score(labels, predicted, average=None))


def test_top5_needs_more_than_five_classes():
    assert random_predictions(classes=5)[0].top5(np.zeros(500, dtype=np.int64)) is None
    assert random_predictions(classes=6)[0].top5(np.zeros(500, dtype=np.int64)) is not None


def test_of_equal_scores_the_first_class_is_likelier():
    predictions = Predictions(torch.zeros(8, 8))
    np.testing.assert_array_equal(predictions.predicted, np.zeros(8))
    assert predictions.top5(np.arange(8)) == 5 / 8


def test_a_class_that_the_classifier_does_not_know_is_never_predicted():
    scores = torch.tensor([[-torch.inf, -9.0, -8.0, -7.0, -6.0, -5.0, -4.0]])
    predictions = Predictions(scores)
    assert predictions.predicted.tolist() == [6]
    assert predictions.top5(np.array([0])) == 0
    assert predictions.top5(np.array([2])) == 1


def test_a_class_without_test_images_has_no_accuracy_of_its_own():
    matrix = confusion(np.array([0, 2, 2]), np.array([0, 0, 2]), 4)
    assert matrix.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(per_class(matrix), [0.5, np.nan, 1.0, np.nan])


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (1, 1), (81, 263), (1600, 2000)])
def test_the_interval_of_a_test_set_is_that_of_scipy(correct, total):
    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_test_set_by_hand():
    # z = 1.96, 8 of 10: centre (0.8 + 3.8416 / 20) / 1.38416, half 1.96 sqrt(0.016 + 3.8416 / 400) / 1.38416.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(1600.5, 2000)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.8 * 0.2 / 2000), rel=0.01)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 10), (11, 10)])
def test_what_is_no_accuracy_has_no_interval(correct, total):
    with pytest.raises(ValueError, match=f"{correct} correct of {total}"):
        wilson(correct, total)


def test_the_interval_over_seeds_is_students():
    values = [0.71, 0.74, 0.72, 0.75]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert over_seeds(values) == pytest.approx(expected)
    # By the table t = 12.706 for one degree of freedom: 0.5 +- 12.706 * 0.01 / 2.
    assert over_seeds([0.495, 0.505]) == pytest.approx((0.5 - 0.06353, 0.5 + 0.06353), abs=1e-5)
    assert over_seeds([0.4, 0.6]) == (0.0, 1.0), "an accuracy is nothing else"
    assert over_seeds([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_one_seed_has_no_interval_over_seeds():
    assert over_seeds([0.7]) is None
    assert over_seeds([]) is None


def test_a_summary_has_both_uncertainties():
    summary = summarised([1400, 1430, 1421], 2000)
    assert summary.mean == pytest.approx(0.7085)
    assert summary.seeds_interval == over_seeds([0.7, 0.715, 0.7105])
    assert summary.test_interval == wilson(1417, 2000)
    single = summarised([1400], 2000)
    assert (single.mean, single.seeds_interval, single.test_interval) == (0.7, None, wilson(1400, 2000))

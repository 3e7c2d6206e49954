"""How well classes are predicted: accuracy, a confusion matrix, and the intervals that go with them.

Shapes: m test images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CONFIDENCE: Final = 0.95
TOP: Final = 5
"""`top5` counts an image whose class is among these many."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of every test image."""

    scores: Tensor
    """(m, C) float32, larger is likelier; minus infinity for a class that the classifier does not know."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(m,): each image's likeliest class; of classes with equal scores the first."""
        first: NDArray[np.int64] = np.argmax(self.scores.cpu().numpy(), axis=1)
        return first

    def top5(self, labels: NDArray[np.int64]) -> float | None:
        """Share of the images whose class is among the five likeliest; None with five classes or fewer.

        Of classes with equal scores the first ones count as likelier.
        """
        scores = self.scores.cpu().numpy()
        if scores.shape[1] <= TOP:
            return None
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        before = np.arange(scores.shape[1]) < labels[:, None]
        likelier = (scores > own) | ((scores == own) & before)
        return float(np.mean(likelier.sum(axis=1) < TOP))


def top1(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of the images, 0..1, whose class (m,) was predicted (m,)."""
    return float(np.mean(predicted == labels))


def confusion(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (C, C) of images by true class, in rows, and predicted class, in columns."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share (C,) of each class's images that were predicted, from `confusion`; nan for a class without images."""
    images = matrix.sum(axis=1)
    return np.where(images > 0, np.diagonal(matrix) / np.maximum(images, 1), np.nan)


def wilson(correct: float, total: int) -> tuple[float, float]:
    """Interval (95 %) of an accuracy of ``correct`` in ``total`` test images, by their number alone.

    ``correct`` may be a mean over seeds. By Wilson (1927): unlike the normal approximation it stays within 0..1 and
    has a width where all or none are correct.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} images is no accuracy")
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, scale = correct / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / scale
    # Rounding would leave the bound of a perfect score beside it by the last digit.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)


def over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """Interval (95 %) of the mean accuracy over seeds, by Student's t, within 0..1; None for fewer than two values."""
    # Imported here: it takes a few tenths of a second, which every worker of every attempt would spend.
    from scipy.special import stdtrit  # noqa: PLC0415

    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / math.sqrt(len(values))
    # With two seeds half of it may be more than the accuracy itself.
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)


@dataclass(frozen=True)
class Summary:
    """An accuracy over seeds, with both of its uncertainties."""

    mean: float
    seeds_interval: tuple[float, float] | None
    """Of the mean over seeds; None for a single seed."""
    test_interval: tuple[float, float]
    """By the number of test images, at the mean."""


def summarised(correct: Sequence[int], total: int) -> Summary:
    """The accuracy of classifiers that predicted ``correct`` of the same ``total`` test images, one for each seed."""
    values = [count / total for count in correct]
    return Summary(fmean(values), over_seeds(values), wilson(fmean(correct), total))

"""A linear probe: the accuracy of a linear classifier on frozen features."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 300


def linear_probe(
    train_x: NDArray[np.float32], train_y: NDArray[np.int64], test_x: NDArray[np.float32], test_y: NDArray[np.int64]
) -> float:
    """Top-1 accuracy in 0..1 on ``test_x`` (n, D) with labels ``test_y`` (n,).

    The classifier is a multinomial logistic regression on the standardised features of ``train_x``. The solver stops
    after 300 iterations, converged or not, so the result is deterministic.
    """
    # Imported here: it takes more than a second, which every worker of every attempt would spend.
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_x, train_y)
    return float(probe.score(test_x, test_y))

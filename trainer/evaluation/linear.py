"""A linear probe: what a linear classifier reads out of frozen features."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 300


def linear_probe(
    train_x: NDArray[np.float32], train_y: NDArray[np.int64], test_x: NDArray[np.float32], test_y: NDArray[np.int64]
) -> float:
    """Top-1 accuracy in 0..1 on ``test``: standardised features (n, D), multinomial logistic regression.

    The solver stops after 300 iterations, converged or not, so the result is deterministic.
    """
    # Imported here: more than a second, as long as torch takes, that every worker of every attempt would spend.
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_x, train_y)
    return float(probe.score(test_x, test_y))

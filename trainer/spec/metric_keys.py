"""Keys of the metrics of a run."""

from __future__ import annotations

from typing import Final

# Metrics of a run. The step is the optimiser step; a resumed attempt may log a step again: the latest value counts.
LOSS: Final = "train/loss"
LOSS_RECONSTRUCTION: Final = "train/loss_reconstruction"
LOSS_CONSISTENCY: Final = "train/loss_consistency"
LEARNING_RATE: Final = "train/lr"
TEACHER_MOMENTUM: Final = "train/teacher_momentum"
GRAD_NORM: Final = "train/grad_norm"
IMAGES_PER_S: Final = "throughput/images_per_s"
DATA_WAIT_FRACTION: Final = "throughput/data_wait_fraction"
TEST_TOP1: Final = "test/top1"
"""Accuracy on the test images, of a training with labels."""
EPOCH: Final = "progress/epoch"
SAMPLES: Final = "progress/samples"
EVALUATION: Final = "eval/"
"""Prefix of the metrics of an evaluation."""
RECONSTRUCTION_RATIO: Final = "eval/reconstruction_ratio"
LINEAR_TOP1: Final = "eval/linear_top1"
LINEAR_TOP1_RANDOM_INIT: Final = "eval/linear_top1_random_init"
KNN_TOP1: Final = "eval/knn_top1"
KNN_TOP1_RANDOM_INIT: Final = "eval/knn_top1_random_init"


def score_key(protocol: str, share: float | None = None, weights: str = "backbone") -> str:
    """The key of an evaluation's accuracy: of a protocol, on a share of the labels, with these weights.

    >>> score_key("linear", 0.01, "random")
    'eval/linear_top1_1pct_random_init'
    """
    labels = "" if share is None else f"_{100 * share:.6g}pct"
    ending = {"backbone": "", "random": "_random_init", "scratch": "_scratch"}[weights]
    return f"{EVALUATION}{protocol}_top1{labels}{ending}"


MEAN_CORRUPTION_ERROR: Final = "eval/mce"

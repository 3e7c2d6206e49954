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
EPOCH: Final = "progress/epoch"
SAMPLES: Final = "progress/samples"
EVALUATION: Final = "eval/"
"""Prefix of the metrics of an evaluation."""
RECONSTRUCTION_RATIO: Final = "eval/reconstruction_ratio"
LINEAR_TOP1: Final = "eval/linear_top1"
LINEAR_TOP1_RANDOM_INIT: Final = "eval/linear_top1_random_init"

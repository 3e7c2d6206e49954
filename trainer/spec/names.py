"""Names that cross a boundary: metric keys, run tags, paths under a run's artifact folder."""

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
RECONSTRUCTION_RATIO: Final = "eval/reconstruction_ratio"
LINEAR_TOP1: Final = "eval/linear_top1"
LINEAR_TOP1_RANDOM_INIT: Final = "eval/linear_top1_random_init"

# Tags of a run.
TAG_COMMAND: Final = "rcmae.command"
"""JSON of `trainer.spec.job.Command`, written by the service."""
TAG_OBSERVED: Final = "rcmae.observed"
"""JSON of the last `Command` the attempt has seen, written by the attempt."""
TAG_JOB: Final = "rcmae.job_id"
TAG_ATTEMPT: Final = "rcmae.attempt"
"""Of a run: the one attempt that counts. Of a version: the attempt that made it."""
TAG_SPEC: Final = "rcmae.spec_sha256"
TAG_DATASET: Final = "rcmae.dataset_fingerprint"
TAG_STEPS: Final = "rcmae.total_steps"
"""Optimiser steps of the whole run, known once the index is built."""
TAG_IMAGES: Final = "rcmae.dataset_images"
"""Readable images of the dataset, known once the index is built."""
TAG_CHECKPOINT: Final = "rcmae.checkpoint"
"""The newest committed checkpoint, relative to the run's artifact folder; empty while there is none."""
TAG_NOTICE: Final = "rcmae.notice"
"""A sentence on what troubles a running attempt and what to do; empty while nothing does."""
TAG_METHOD: Final = "rcmae.method"
TAG_EPOCHS: Final = "rcmae.epochs"

# Paths below a run's artifact folder.
CHECKPOINTS: Final = "checkpoints"
MANIFEST: Final = "manifest.json"
IMAGES: Final = "images"


def heartbeat(attempt: int) -> str:
    """Metric key: seconds since 1970 when the attempt last showed life. Each attempt has a key of its own."""
    return f"rcmae/heartbeat_a{attempt}"


def attempt_folder(attempt: int) -> str:
    return f"attempts/{attempt}"


def outcome_file(attempt: int) -> str:
    """JSON of `trainer.spec.job.Outcome`, the attempt's last act."""
    return f"{attempt_folder(attempt)}/outcome.json"


def log_folder(attempt: int) -> str:
    """Log chunks `<source>.<chunk>.jsonl`; a source is `driver` or `rank-<n>`."""
    return f"{attempt_folder(attempt)}/logs"


def worker_folder(attempt: int) -> str:
    """A file `rank-<n>.json` of each worker: where it runs."""
    return f"{attempt_folder(attempt)}/workers"


def checkpoint_folder(attempt: int) -> str:
    return f"{CHECKPOINTS}/a{attempt}"


def picture_file(step: int) -> str:
    return f"{IMAGES}/reconstruction_{step:08d}.png"


def submission_id(job_id: str, attempt: int) -> str:
    """The id of an attempt at the Ray Jobs API."""
    return f"{job_id}-a{attempt}"


# Files of a registered backbone.
BACKBONE_HF: Final = "hf"
"""Folder that `transformers.ViTModel.from_pretrained` loads."""
BACKBONE_SPEC: Final = "spec.json"
BACKBONE_SUMS: Final = "SHA256SUMS"

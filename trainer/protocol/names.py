"""Names that cross between service and attempt: run tags, study attributes, paths below a run's artifact folder."""

from __future__ import annotations

from typing import Final

# Tags of a run.
TAG_COMMAND: Final = "rcmae.command"
"""JSON of `trainer.protocol.command.Command`, written by the service."""
TAG_OBSERVED: Final = "rcmae.observed"
"""JSON of the last `Command` the attempt has seen, written by the attempt."""
TAG_JOB: Final = "rcmae.job_id"
"""Of a run: its job. Of a version: the job that registered it."""
TAG_ATTEMPT: Final = "rcmae.attempt"
"""Of a run: the one attempt that counts. Of a version: the attempt that made it."""
TAG_REPLACES: Final = "rcmae.replaces"
"""Of a run that was made because the one before it was removed for good: that one's id."""
TAG_SPEC: Final = "rcmae.spec_sha256"
TAG_DATASET: Final = "rcmae.dataset_fingerprint"
TAG_STEPS: Final = "rcmae.total_steps"
"""Optimiser steps of the whole run, known once the index is built."""
TAG_IMAGES: Final = "rcmae.dataset_images"
"""Readable images of the dataset, known once the index is built."""
TAG_CHECKPOINT: Final = "rcmae.checkpoint"
"""Of a run: the newest committed checkpoint, relative to the job's artifact folder; empty while there is none. Of a
version: the one it was made from."""
TAG_NEWEST: Final = "rcmae.newest"
"""JSON of `trainer.protocol.progress.Newest`. MLflow's own last value of a metric is that of the highest step, which an
attempt that went back has not reached yet."""
TAG_NOTICE: Final = "rcmae.notice"
"""A sentence on what troubles a running attempt and what to do; empty while nothing does."""
TAG_METHOD: Final = "rcmae.method"
TAG_EPOCHS: Final = "rcmae.epochs"
"""Of a run: all it is to have. Of a version: those its weights have had, perhaps a fraction."""

# Of a search: its study in Optuna's database, whose name is the job's id, and its trials' runs.
STUDY_VARIABLE: Final = "RCMAE_STUDY_URL"
"""Environment variable with the database's URL, of the service and of the nodes that searches run on; never stored."""
TAG_SEARCH: Final = "rcmae.search"
"""Of a search's run: JSON of `trainer.protocol.command.SearchOrders`."""
TAG_TRIAL_OF: Final = "rcmae.trial_of"
"""Of a trial's run: the search it is of. It has no `TAG_JOB`: the search's own run has that."""
TAG_TRIAL: Final = "rcmae.trial"
"""Of a trial's run: its number."""
TAG_PARENT: Final = "mlflow.parentRunId"
"""Of a trial's run: the search's, below which MLflow's pages show it."""
TRIAL_RUN: Final = "run_id"
"""Attribute of a trial in the study, as are those below: its run."""
TRIAL_FOLDER: Final = "artifact_uri"
"""Its run's artifact folder."""
TRIAL_EPOCH: Final = "epoch"
"""Epochs it had when it was last evaluated."""
TRIAL_METRICS: Final = "metrics"
"""What its last evaluation measured."""
TRIAL_REASON: Final = "reason"
"""Typed cause of its end; absent where it simply finished."""
TRIAL_MESSAGE: Final = "message"
"""The same for people."""
TRIAL_ATTEMPTS: Final = "attempts"
"""Numbers of its starts, from 1: each has logs and checkpoints of its own, as a job's attempts have."""
TRIAL_SEED: Final = "seed"
"""The spec's seed, where it is another than the base's."""
TRIAL_REPEAT_OF: Final = "repeat_of"
"""The trial whose values it has once more, with another seed."""
TRIAL_RETRY_OF: Final = "retry_of"
"""The failed trial whose values it has once more."""
BEYOND_BUDGET: Final = frozenset({TRIAL_REPEAT_OF, TRIAL_RETRY_OF})
"""A trial that has one of these attributes counts against no budget."""
TRIAL_ADDED_BY: Final = "added_by"
"""The request that added it, where that came with an idempotency key."""
STUDY_SECONDS: Final = "seconds"
"""Attribute of a study: seconds that attempts have run trials."""
STUDY_SWEPT: Final = "swept"
"""Attribute of a study: numbers of ended trials whose checkpoints were removed, as others were better."""

# Tags of a version alone; `run_id` of the version is the run that trained it.
TAG_SOURCE_JOB: Final = "rcmae.source_job_id"
"""The job that trained it: `TAG_JOB`'s own, or for a `publish` job the one it names."""
TAG_CODE: Final = "rcmae.code_version"
TAG_STEP: Final = "rcmae.checkpoint_step"
TAG_FORMATS: Final = "rcmae.formats"
"""Its `BACKBONE_FORMATS`, with commas between them."""
TAG_NETWORK: Final = "rcmae.network"
"""`teacher` or `student`."""
TAG_METRIC: Final = "rcmae.metric."
"""Before a metric's key: the last evaluation's results, for example `rcmae.metric.eval/linear_top1`."""

# Paths below a run's artifact folder.
CHECKPOINTS: Final = "checkpoints"
MANIFEST: Final = "manifest.json"
IMAGES: Final = "images"
LOG_POSITIONS: Final = "log-positions"
"""What the service remembers for readers of logs that have very many sources."""


def heartbeat(attempt: int) -> str:
    """Metric key: seconds since 1970 when the attempt last showed life. Each attempt has a key of its own."""
    return f"rcmae/heartbeat_a{attempt}"


def attempt_folder(attempt: int) -> str:
    return f"attempts/{attempt}"


def outcome_file(attempt: int) -> str:
    """JSON of `trainer.protocol.outcome.Outcome`, the attempt's last act."""
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


BACKBONE_CARD: Final = "README.md"
"""The model card."""
BACKBONE_PICTURES: Final = "card"
"""Folder of the card's pictures."""
BACKBONE_METRICS: Final = "metrics.json"
"""The last evaluation, and the curves."""
BACKBONE_SPEC: Final = "spec.json"
"""The spec it was trained with, resolved."""
BACKBONE_SUMS: Final = "SHA256SUMS"
"""Of all the others, as `sha256sum --check` reads them."""

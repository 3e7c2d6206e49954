"""Names that cross between service and attempt: run tags, study attributes, paths below a run's artifact folder."""

from __future__ import annotations

from typing import Final

# Tags of a run.
TAG_LENGTH: Final = 8000
"""MLflow's limit on the characters of a tag."""
DESCRIPTION_LENGTH: Final = 5000
"""MLflow's limit on the characters of the description of a registered model or version."""
CHAMPION: Final = "champion"
"""The alias of the version that is pulled where none is named."""
TAG_COMMAND: Final = "rcmae.command"
"""JSON of `trainer.protocol.command.Command`, written by the service."""
TAG_OBSERVED: Final = "rcmae.observed"
"""JSON of the last `Command` that the attempt has received, written by the attempt."""
TAG_JOB: Final = "rcmae.job_id"
"""On a run: its job. On a version: the job that registered it."""
TAG_ATTEMPT: Final = "rcmae.attempt"
"""On a run: the current attempt. On a version: the attempt that registered it."""
TAG_REPLACES: Final = "rcmae.replaces"
"""On a run that was created because the previous one was permanently deleted: the previous one's id."""
TAG_USER: Final = "mlflow.user"
"""On a run: the owner of its job, whom MLflow's pages show."""
TAG_SPEC: Final = "rcmae.spec_sha256"
TAG_DATASET: Final = "rcmae.dataset_fingerprint"
TAG_LABEL: Final = "rcmae.label."
"""On a version and on a registered model: begins the tags that copy the labels which the service keeps."""
TAG_EVALUATED: Final = "rcmae.evaluated."
"""On a version: prefix of a metric's key, for the newest result of its evaluations, with the dataset and the job in
words. The service writes it, and keeps the results themselves."""
TAG_DATASET_NAME: Final = "rcmae.dataset"
"""On a version: what people call the dataset, as in the model card; absent if neither spec nor URI says."""
TAG_STEPS: Final = "rcmae.total_steps"
"""Optimiser steps of the whole run, known once the index is built; of an evaluation its measurements."""
TAG_WORK: Final = "rcmae.total_work"
"""Of an evaluation: forward passes of images that all measurements are worth, an estimate. `progress/samples` counts
them, so that their rate tells the time left."""
TAG_IMAGES: Final = "rcmae.dataset_images"
"""Readable images of the dataset, known once the index is built."""
TAG_LABELS: Final = "rcmae.labels"
"""How many classes there are and where their names come from, in words."""
TAG_SCALE: Final = "rcmae.value_range"
"""Pixel values that become black and white, by their type."""
TAG_DATA_NOTICES: Final = "rcmae.data_notices"
"""JSON of what the data's owner should know: a list of objects with `code` and `message`."""
TAG_CHECKPOINT: Final = "rcmae.checkpoint"
"""On a run: the newest committed checkpoint, relative to the job's artifact folder; empty while there is none. On a
version: the checkpoint it was made from."""
TAG_NEWEST: Final = "rcmae.newest"
"""JSON of `trainer.protocol.progress.Newest`. MLflow's own last value of a metric is that of the highest step, which an
attempt that resumed from an earlier checkpoint has not reached again."""
TAG_ACTIVITY: Final = "rcmae.activity"
"""JSON of `trainer.protocol.progress.Activity`, written with each heartbeat of an attempt that trains or publishes."""
TAG_NOTICE: Final = "rcmae.notice"
"""A sentence about a running attempt's current problem and what to do; empty if there is none."""
TAG_SUBJECT: Final = "rcmae.subject"
"""On a run that measures or uses a backbone: which one, in words."""
TAG_MEASURING: Final = "rcmae.measuring"
"""On an evaluation's run: what it is measuring now, in words; empty if nothing."""
TAG_METHOD: Final = "rcmae.method"
METHOD_IMPORTED: Final = "imported"
"""The method of versions that others have trained."""
TAG_EPOCHS: Final = "rcmae.epochs"
"""On a run: the epochs that the spec asks for. On a version: those that its weights have had, perhaps a fraction."""

# Searches: the study in Optuna's database, whose name is the job's id, and the trials' runs.
STUDY_VARIABLE: Final = "RCMAE_STUDY_URL"
"""Environment variable with the database's URL, on the service and on nodes that run searches; never stored."""
TAG_SEARCH: Final = "rcmae.search"
"""On a search's run: JSON of `trainer.protocol.command.SearchOrders`."""
TAG_TRIAL_OF: Final = "rcmae.trial_of"
"""On a trial's run: its search. It has no `TAG_JOB`: that is on the search's own run."""
TAG_TRIAL: Final = "rcmae.trial"
"""On a trial's run: its number."""
TAG_PARENT: Final = "mlflow.parentRunId"
"""On a trial's run: the search's run, below which MLflow's pages show it."""
TRIAL_RUN: Final = "run_id"
"""Attribute of a trial in the study, like all names below that begin with `TRIAL_`: its run."""
TRIAL_FOLDER: Final = "artifact_uri"
"""Its run's artifact folder."""
TRIAL_EPOCH: Final = "epoch"
"""The epoch of its last evaluation."""
TRIAL_METRICS: Final = "metrics"
"""The metrics of its last evaluation."""
TRIAL_REASON: Final = "reason"
"""The typed reason of its end; absent if it simply finished."""
TRIAL_MESSAGE: Final = "message"
"""A sentence on why it ended."""
TRIAL_ATTEMPTS: Final = "attempts"
"""Numbers of its starts, from 1. Each start has its own logs and checkpoints, like an attempt of a job."""
TRIAL_FAILURES: Final = "failures"
"""How many of its starts ended in a failure that counts against `retry.max_failures`; absent before the first."""
TRIAL_SEED: Final = "seed"
"""The spec's seed, if it differs from the base's."""
TRIAL_REPEAT_OF: Final = "repeat_of"
"""The trial that it repeats with another seed."""
TRIAL_RETRY_OF: Final = "retry_of"
"""The trial that it retries, which ended without a value."""
TRIAL_COPY_OF: Final = "copy_of"
"""The trial that has the same point, and whose end it has taken: it did not train."""
BEYOND_BUDGET: Final = frozenset({TRIAL_REPEAT_OF, TRIAL_RETRY_OF, TRIAL_COPY_OF})
"""Trials with one of these attributes do not count against the budget."""
TRIED_AGAIN: Final = frozenset({TRIAL_REPEAT_OF, TRIAL_RETRY_OF})
"""Trials with one of these attributes train although another one has the same point."""
WITHOUT_OWN_RESULT: Final = frozenset({TRIAL_REPEAT_OF, TRIAL_COPY_OF})
"""Trials with one of these attributes are not among the best: their points are those of other trials."""
TRIAL_ADDED_BY: Final = "added_by"
"""The request that added it, if that had an idempotency key."""
STUDY_SECONDS: Final = "seconds"
"""Attribute of a study: seconds for which attempts have run trials."""
STUDY_HELD: Final = "held"
"""Attribute of a study: numbers of the trials that may have checkpoints: those that run, and the best that have ended.
A study without it may have checkpoints of every trial."""

# Tags of versions only. A version's `run_id` is the run that trained it.
TAG_SOURCE_JOB: Final = "rcmae.source_job_id"
"""The job that trained it: the same as `TAG_JOB`, or for a `publish` job the one that its spec names."""
TAG_CODE: Final = "rcmae.code_version"
TAG_STEP: Final = "rcmae.checkpoint_step"
TAG_FORMATS: Final = "rcmae.formats"
"""Those of `BACKBONE_FORMATS` that it has, separated by commas."""
TAG_NETWORK: Final = "rcmae.network"
"""`teacher` or `student`."""
TAG_LICENSE: Final = "rcmae.license"
"""The weights' licence, if somebody named it."""
TAG_ORIGIN: Final = "rcmae.origin"
"""On an imported version, like all tags below: what its makers call it."""
TAG_ORIGIN_URL: Final = "rcmae.origin_url"
"""Where its makers publish it."""
TAG_SOURCE_FORMAT: Final = "rcmae.source_format"
"""What it was converted from, such as `timm` or `vit_mae`."""
TAG_SOURCE_FILES: Final = "rcmae.source_sha256"
"""JSON: the sha256 of each file that was read, by name. Of more than ten files, `sha256:` and the digest of their list
as `sha256sum` writes it, in the order of their names; `spec.json` has them all."""
TAG_TYPE: Final = "rcmae.type"
"""`classifier`; a version without it is a backbone."""
CLASSIFIER: Final = "classifier"
TAG_CLASSES: Final = "rcmae.classes"
"""On a classifier, like the tag below. JSON: its classes in the order of its logits, or their number where the names
take more than MLflow's limit."""
TAG_FINE_TUNED_FROM: Final = "rcmae.fine_tuned_from"
"""The version that it was fine-tuned from, as `NAME:VERSION`; other weights have their title."""
METHOD_FINE_TUNED: Final = "finetune"
"""The method of classifiers."""
TAG_METRIC: Final = "rcmae.metric."
"""Prefix of a metric's key, for results of the last evaluation, for example `rcmae.metric.eval/linear_top1`."""

# Paths below a run's artifact folder.
CHECKPOINTS: Final = "checkpoints"
TRAININGS: Final = "trainings"
"""Of an evaluation: its trainings under way, each with a folder for its checkpoints."""
MANIFEST: Final = "manifest.json"
DAMAGE: Final = "damage.json"
"""In a checkpoint that does not count any more: JSON of `trainer.protocol.checkpoint.Damage`."""
IMAGES: Final = "images"
SAMPLES_PICTURE: Final = "images/samples.png"
"""An inspection's picture of some images."""
EMBEDDINGS: Final = "embeddings"
"""Folder of the features that a job of kind `embed` has computed."""
UNTRAINED: Final = "evaluation/untrained.json"
"""Of a training run: the probes' scores of the untrained network, with all that they depend on."""
LOG_POSITIONS: Final = "log-positions"
"""Folder of the service's log positions, for logs with very many sources."""


def heartbeat(attempt: int) -> str:
    """Tag of a run with an attempt's last heartbeat, in seconds since 1970. Each attempt has its own.

    It is no metric: of metrics MLflow keeps every value, and shows a chart.
    """
    return f"rcmae.heartbeat_a{attempt}"


def attempt_folder(attempt: int) -> str:
    return f"attempts/{attempt}"


def outcome_file(attempt: int) -> str:
    """JSON of `trainer.protocol.outcome.Outcome`, the attempt's last act."""
    return f"{attempt_folder(attempt)}/outcome.json"


def log_folder(attempt: int) -> str:
    """Log chunks `<source>.<chunk>.jsonl`; a source is `driver` or `rank-<n>`."""
    return f"{attempt_folder(attempt)}/logs"


def worker_folder(attempt: int) -> str:
    """Folder with a file `rank-<n>.json` for each worker, which says where it runs."""
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
"""The resolved spec that it was trained with."""
BACKBONE_SUMS: Final = "SHA256SUMS"
"""Checksums of all other files, as `sha256sum --check` reads them."""

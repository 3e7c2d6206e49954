"""A job's progress, read from the tags of its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from service.adapters.mlflow_runs import RunView
from service.db.tables import Attempt, Job
from service.jobs.schemas import Progress
from trainer.protocol import names
from trainer.protocol.inspection import Warned
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys
from trainer.spec.base import SpecError
from trainer.spec.job import parse_pretrain
from trainer.spec.plan import Schedule

WARNINGS: Final = TypeAdapter(list[Warned])


def record(job: Job, attempts: Sequence[Attempt], run: RunView, moment: datetime) -> None:
    """Write a run's metrics and progress into the job's row.

    What an attempt before `since_attempt` reported is ignored: the job has started over since.
    """
    images = run.tags.get(names.TAG_IMAGES)
    job.dataset_images = int(images) if images else job.dataset_images
    newest = run.newest()
    if newest is None or newest.attempt < job.since_attempt:
        return
    job.metrics = dict(newest.values)
    running = [attempt.number for attempt in attempts if attempt.ended_at is None]
    progress = progress_of(job.run_spec, newest, run.tags.get(names.TAG_STEPS), running)
    if progress:
        progress.gpu_hours = gpu_hours(attempts, moment)
        progress.labels = run.tags.get(names.TAG_LABELS, "")
        progress.warnings = WARNINGS.validate_json(run.tags.get(names.TAG_DATA_NOTICES, "[]"))
        job.progress = progress.model_dump(mode="json")


def progress_of(
    spec: Mapping[str, object], newest: Newest, steps: str | None, running: Sequence[int]
) -> Progress | None:
    """A run's progress; None before its first metrics. The end is estimated only for ``running`` attempts."""
    values, samples = newest.values, newest.values.get(metric_keys.SAMPLES)
    if samples is None:
        return None
    optimization = parse_pretrain(spec).optimization
    step, total = round(samples / optimization.global_batch_size), int(steps) if steps else None
    left = max(0, total - step) * optimization.global_batch_size if total is not None else None
    rate = newest.images_per_s if newest.attempt in running else None
    return Progress(
        epoch=values.get(metric_keys.EPOCH, 0.0),
        epochs=optimization.epochs,
        step=step,
        steps=total,
        samples=int(samples),
        images_per_s=values.get(metric_keys.IMAGES_PER_S),
        data_wait_fraction=values.get(metric_keys.DATA_WAIT_FRACTION),
        loss=values.get(metric_keys.LOSS),
        eta_s=0.0 if left == 0 else left / rate if left and rate else None,
    )


def steps_per_epoch(spec: Mapping[str, object], images: int | None) -> int | None:
    """Steps per epoch; None until the dataset's images have been counted, and where they no longer fill a batch."""
    if images is None:
        return None
    try:
        return Schedule.of(parse_pretrain(spec), images).steps_per_epoch
    except SpecError:
        return None


def gpu_hours(attempts: Sequence[Attempt], moment: datetime) -> float:
    """GPU hours of all attempts until ``moment``, rounded to thousandths."""
    seconds = [
        (attempt.gpus or 0) * ((attempt.ended_at or moment) - attempt.started_at).total_seconds()
        for attempt in attempts
    ]
    return round(sum(max(0.0, each) for each in seconds) / 3600, 3)

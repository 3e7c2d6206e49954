"""What a run's metrics and tags tell about its job."""

from __future__ import annotations

from collections.abc import Mapping

from service.adapters.mlflow_store import RunView
from service.db import Job
from service.jobs.schemas import Progress
from trainer.spec import names
from trainer.spec.job import parse_spec


def record(job: Job, run: RunView) -> None:
    """Take over what the run tells."""
    images = run.tags.get(names.TAG_IMAGES)
    job.dataset_images = int(images) if images else job.dataset_images
    progress = progress_of(job.run_spec, run.metrics, run.tags.get(names.TAG_STEPS))
    if progress:
        job.progress = progress.model_dump(mode="json")


def progress_of(spec: Mapping[str, object], metrics: Mapping[str, float], steps: str | None) -> Progress | None:
    """How far a run is; None before its first metrics."""
    samples = metrics.get(names.SAMPLES)
    if samples is None:
        return None
    optimization = parse_spec(spec).optimization
    step = round(samples / optimization.global_batch_size)
    total, rate = int(steps) if steps else None, metrics.get(names.IMAGES_PER_S)
    left = (total - step) * optimization.global_batch_size / rate if total is not None and rate else None
    return Progress(
        epoch=metrics.get(names.EPOCH, 0.0),
        epochs=optimization.epochs,
        step=step,
        steps=total,
        samples=int(samples),
        images_per_s=rate,
        loss=metrics.get(names.LOSS),
        eta_s=left,
    )

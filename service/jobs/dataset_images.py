"""The number of a dataset's images, as earlier jobs have counted them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import Job
from trainer.spec.base import SpecError
from trainer.spec.dataset import DIGITS, DIGITS_IMAGES, DatasetSpec
from trainer.spec.job import parse_spec

LOOKED_AT: Final = 50
"""The most jobs of a dataset's URI that are looked at, the newest first."""


def dataset_images(session: Session, dataset: DatasetSpec) -> int | None:
    """The number of readable images that a spec uses, from the newest job that counted them; None before any has."""
    if dataset.uri == DIGITS:
        return max(1, round(dataset.fraction * DIGITS_IMAGES))
    query = select(Job).where(Job.dataset_uri == dataset.uri, Job.dataset_images.is_not(None))
    for job in session.scalars(query.order_by(Job.created_at.desc()).limit(LOOKED_AT)):
        if same_images(job, dataset):
            return job.dataset_images
    return None


def same_images(job: Job, dataset: DatasetSpec) -> bool:
    """Whether a job uses the same images of the dataset."""
    try:
        used = parse_spec(job.spec).dataset_used
    except SpecError:  # stored by an earlier version, which accepted what this one refuses
        return False
    return used is not None and used.selection == dataset.selection

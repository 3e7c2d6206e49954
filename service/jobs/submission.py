"""What making a job takes, whoever makes it: a person, or the controller out of a search's trial."""

from __future__ import annotations

import structlog
from sqlalchemy.orm import Session

from service.auth.caller import sha256
from service.db.tables import Event, Job
from service.jobs import repository
from service.jobs.schemas import PromotedFrom, State
from service.settings import Settings
from trainer.spec.base import Problem, SpecError
from trainer.spec.dataset import DIGITS, DIGITS_IMAGES, misplaced
from trainer.spec.job import JobSpec
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec

HASHED = "sha256:"
"""Begins every idempotency key that is kept."""


def kept_key(key: str) -> str:
    """An idempotency key as it is kept. People put into it what they like: it is compared and never shown."""
    return f"{HASHED}{sha256(key)}"


def insert(
    session: Session,
    owner: str,
    spec: JobSpec,
    dataset_uri: str,
    key: str | None,
    origin: PromotedFrom | None = None,
) -> Job:
    """A new job, in the caller's transaction; ``key`` is as it is kept."""
    job = Job(
        id=repository.new_id(),
        kind=spec.kind,
        name=spec.name,
        state=State.QUEUED.value,
        owner=owner,
        priority=spec.priority,
        labels=dict(spec.labels),
        spec=spec.model_dump(mode="json"),
        dataset_uri=dataset_uri,
        idempotency_key=key,
        body_sha256=spec.sha256(),
        request_id=structlog.contextvars.get_contextvars().get("request_id"),  # of the request that is answered now
        search_id=origin.search if origin else None,
        trial=origin.trial if origin else None,
    )
    session.add(job)
    session.flush()
    told = f"Promoted from trial {origin.trial} of {origin.search}." if origin else "Submitted."
    session.add(Event(job_id=job.id, state=job.state, message=told, actor=owner))
    return job


def check_places(settings: Settings, spec: PretrainSpec) -> None:
    """Raises `SpecError` where a dataset lies where none may."""
    named = ((spec.dataset, "dataset"), (spec.evaluation.dataset, "evaluation.dataset"))
    wrong = [misplaced(dataset, field, settings.dataset_roots) for dataset, field in named if dataset]
    found = [problem for problem in wrong if problem]
    if found:
        raise SpecError(found)


def schedule(session: Session, spec: PretrainSpec) -> Schedule | None:
    """Steps where the number of images is known; raises `SpecError` where one batch does not fit."""
    images = DIGITS_IMAGES if spec.dataset.uri == DIGITS else repository.images_of(session, spec.dataset.uri)
    return Schedule.of(spec, images) if images else None


def below(place: str, error: SpecError) -> SpecError:
    """The same problems, of a document that is a part of another one, at ``place`` in it."""
    head = place.replace(".", "/")
    return SpecError(
        [
            Problem(f"{place}.{each.field}".rstrip("."), f"/{head}{each.pointer}", each.value, each.message)
            for each in error.problems
        ]
    )

"""Database rows as the scheduler's input: shared by the plan, the cluster page and the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from service.context.kind import Kinds
from service.db.tables import Attempt, Job
from service.jobs.state import State
from service.queue.scheduler import Running, Waiting
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import parse_spec
from trainer.spec.plan import gang, resolve

log = structlog.get_logger()


def running_entries(
    active: Sequence[tuple[Job, Attempt | None]], placements: Mapping[str, Sequence[str]]
) -> list[Running]:
    """The resources of live attempts, with their nodes; ``placements`` gives these by submission id."""
    entries = []
    for job, attempt in active:
        if attempt is None or attempt.ended_at is not None:
            continue
        try:
            needs = gang(parse_spec(job.run_spec))
        except ValueError:  # `SpecError` is one
            log.exception("spec_unreadable", job_id=job.id)
            continue
        entries.append(Running(job.id, job.owner, needs, placements.get(attempt.submission_id, ())))
    return entries


def waiting_entries(jobs: Sequence[Job], shape: ClusterShape, kinds: Kinds) -> dict[str, Waiting]:
    """Waiting jobs by id; a job whose stored spec is no longer valid is logged and left out."""
    entries: dict[str, Waiting] = {}
    for job in jobs:
        try:
            spec = resolve(kinds[job.kind].spec_to_resolve(job), shape)
        except ValueError:  # `SpecError` is one
            log.exception("spec_unreadable", job_id=job.id)
            continue
        entries[job.id] = Waiting(
            job_id=job.id,
            owner=job.owner,
            spec=spec,
            priority=job.priority,
            since=job.waiting_since,
            not_before=job.not_before,
            recovering=job.state == State.RECOVERING,
        )
    return entries

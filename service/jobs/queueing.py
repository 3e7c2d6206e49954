"""Database rows as the scheduler's input: shared by the plan, the cluster page and the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    live: Sequence[tuple[Job, Attempt | None]], placements: Mapping[str, Sequence[str]]
) -> list[Running]:
    """The resources of live attempts, with their nodes; ``placements`` gives these by submission id."""
    entries = []
    for job, attempt in live:
        entry = running_entry(job) if attempt and attempt.ended_at is None else None
        if attempt and entry:
            entries.append(replace(entry, nodes=placements.get(attempt.submission_id, ())))
    return entries


def running_entry(job: Job) -> Running | None:
    """What a job's attempt holds, without its nodes; None, and a line in the log, where its spec cannot be read."""
    try:
        return Running(job.id, job.owner, gang(parse_spec(job.run_spec)))
    except ValueError:  # `SpecError` is one
        log.exception("spec_unreadable", job_id=job.id)
        return None


def waiting_entries(jobs: Sequence[Job], shape: ClusterShape, kinds: Kinds) -> dict[str, Waiting]:
    """Waiting jobs by id; a job whose stored spec is no longer valid is logged and left out."""
    entries = (waiting_entry(job, shape, kinds) for job in jobs)
    return {entry.job_id: entry for entry in entries if entry}


def waiting_entry(job: Job, shape: ClusterShape, kinds: Kinds) -> Waiting | None:
    """A waiting job; None, and a line in the log, where its stored spec is no longer valid."""
    try:
        spec = resolve(kinds[job.kind].spec_to_resolve(job), shape)
    except ValueError:  # `SpecError` is one
        log.exception("spec_unreadable", job_id=job.id)
        return None
    return Waiting(
        job_id=job.id,
        owner=job.owner,
        spec=spec,
        priority=job.priority,
        since=job.waiting_since,
        not_before=job.not_before,
        recovering=job.state == State.RECOVERING,
    )

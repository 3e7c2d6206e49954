"""Who starts next: recovering jobs, then by priority, then by age; a job starts with all its workers or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trainer.spec.plan import ClusterShape, gang, impossible
from trainer.spec.pretrain import PretrainSpec


@dataclass(frozen=True)
class Waiting:
    """A job that waits for an attempt, with its resolved spec."""

    job_id: str
    spec: PretrainSpec
    not_before: datetime | None = None


@dataclass(frozen=True)
class Admission:
    """What was decided about a waiting job."""

    job_id: str
    start: bool
    message: str


def admit(
    waiting: Sequence[Waiting], taken: Sequence[ClusterShape], cluster: ClusterShape, moment: datetime
) -> list[Admission]:
    """Decide about every waiting job, given in order. ``taken`` are the gangs of attempts under way.

    No job passes one before it that could run on this cluster but has to wait; a job that never can is passed.
    """
    free = ClusterShape(cluster.cpus - sum(g.cpus for g in taken), cluster.gpus - sum(g.gpus for g in taken))
    blocked: str | None = None
    decisions: list[Admission] = []
    for job in waiting:
        if job.not_before and job.not_before > moment:
            continue
        needs = gang(job.spec)
        never = impossible(job.spec, cluster)
        if never:
            decisions.append(Admission(job.job_id, False, f"Cannot start on this cluster: {never}."))
        elif blocked:
            decisions.append(Admission(job.job_id, False, f"Waits for its turn behind {blocked}."))
        elif needs.cpus > free.cpus or needs.gpus > free.gpus:
            blocked = job.job_id
            decisions.append(
                Admission(job.job_id, False, f"Waits for resources: needs {_shortfall(needs, free, cluster)}.")
            )
        else:
            free = ClusterShape(free.cpus - needs.cpus, free.gpus - needs.gpus)
            decisions.append(Admission(job.job_id, True, f"It takes {_amount(needs)}."))
    return decisions


def _shortfall(needs: ClusterShape, free: ClusterShape, cluster: ClusterShape) -> str:
    if needs.gpus > free.gpus:
        return f"{needs.gpus} GPUs, {free.gpus} free, {cluster.gpus} in the cluster"
    return f"{needs.cpus} CPUs, {free.cpus} free, {cluster.cpus} in the cluster"


def _amount(needs: ClusterShape) -> str:
    return f"{needs.gpus} GPUs and {needs.cpus} CPUs" if needs.gpus else f"{needs.cpus} CPUs"

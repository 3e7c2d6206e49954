"""Decides which waiting jobs start.

The order is: recovering jobs, then priority, then waiting time. Jobs are scheduled as gangs: one starts with all its
workers or not at all, and each worker fits on one node.

A later job may overtake an earlier one that has to wait, within a bound. Until the earlier job has waited for
`Limits.passing_s`, later jobs may use any free resources; from then on only those that cannot delay it, so that the
cluster drains for it. A job that can never run on the cluster, or whose owner is at the limit, holds back no other.

Ray places workers by its PACK strategy, and this module predicts placements by the same rule. Running gangs whose nodes
are unknown are packed, in the order given, after those whose nodes are known. Where Ray places workers differently, an
attempt waits in `starting`, and a job that needs several nodes may be delayed beyond its bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.spec.cluster import ClusterShape, Gang, NodeShape, plural
from trainer.spec.job import JobSpec
from trainer.spec.plan import gang, impossible, resolve

NO_NODES = (
    "Waits for nodes: none has joined the cluster yet. The job needs no change; if no node is about to join, start Ray "
    "on one with `ray start --address=HEAD:6379`."
)
NEWCOMER = "~"
"""The id of a job that is not submitted yet; it sorts after all real ids."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits for an attempt."""

    job_id: str
    owner: str
    spec: JobSpec
    """The resolved spec."""
    priority: int
    since: datetime
    """When it began to wait."""
    not_before: datetime | None = None
    """The end of its back-off. A recovering job that would fit keeps its place until then: a new job could else take
    what it is about to use again."""
    recovering: bool = False


@dataclass(frozen=True)
class Running:
    """A job with a live attempt."""

    job_id: str
    owner: str
    gang: Gang
    nodes: Sequence[str] = ()
    """Ids of the nodes of its workers, one for each worker; empty where they are unknown."""


@dataclass(frozen=True)
class Limits:
    """Scheduling limits from the settings."""

    running_per_user: int | None
    """Jobs that one user may run at a time, including recovering ones; None for no limit."""
    passing_s: float
    """Seconds for which others may overtake a waiting job and delay it."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(running_per_user=settings.running_per_user, passing_s=settings.passing_s)


@dataclass(frozen=True)
class Admission:
    """The decision about a waiting job."""

    job_id: str
    start: bool
    reason: Reason | None
    """Why it waits; None where it starts."""
    message: str


def admit(
    waiting: Sequence[Waiting], running: Sequence[Running], cluster: ClusterShape, moment: datetime, limits: Limits
) -> list[Admission]:
    """Decide about every waiting job that is not backing off, in scheduling order.

    A pure function. ``waiting`` may be in any order; ``running`` should be in the order of starting, for jobs whose
    nodes are unknown.
    """
    if cluster.without_nodes:
        due = [job for job in scheduling_order(waiting) if job.not_before is None or job.not_before <= moment]
        return [_waits(job, Reason.INSUFFICIENT_RESOURCES, NO_NODES) for job in due]
    allocation = _Allocation(waiting, running, cluster, moment, limits)
    decisions = [allocation.decide(job) for job in scheduling_order(waiting)]
    return [decision for decision in decisions if decision]


def scheduling_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Waiting jobs in the order in which they are considered."""
    return sorted(waiting, key=lambda job: (not job.recovering, -job.priority, job.since, job.job_id))


def fits(
    spec: JobSpec,
    owner: str,
    waiting: Sequence[Waiting],
    running: Sequence[Running],
    cluster: ClusterShape,
    moment: datetime,
    limits: Limits,
) -> tuple[Literal["now", "later", "never"], str]:
    """When a spec would start if this owner submitted it now, and a sentence that says why."""
    resolved = resolve(spec, cluster)
    newcomer = Waiting(NEWCOMER, owner, resolved, spec.priority, since=moment)
    admissions = admit([*waiting, newcomer], running, cluster, moment, limits)
    decision = next(admission for admission in admissions if admission.job_id == NEWCOMER)
    if decision.start:
        return "now", decision.message
    return "never" if impossible(resolved, cluster) else "later", decision.message


class _Allocation:
    """The free resources of the nodes while jobs are considered one after the other."""

    def __init__(
        self,
        waiting: Sequence[Waiting],
        running: Sequence[Running],
        cluster: ClusterShape,
        moment: datetime,
        limits: Limits,
    ) -> None:
        self._cluster, self._moment, self._limits = cluster, moment, limits
        self._free = free_nodes(running, cluster)
        self._spare = list(self._free)
        """Free resources that no overdue job can use."""
        self._overdue: list[Waiting] = []
        """Jobs that may no longer be delayed."""
        self._backing_off: list[Waiting] = []
        self._counts = Counter(job.owner for job in running)
        self._counts.update(job.owner for job in waiting if job.recovering)

    def decide(self, job: Waiting) -> Admission | None:
        """The decision about a job; None where it is backing off."""
        never, needs = impossible(job.spec, self._cluster), gang(job.spec)
        if never:
            return _waits(job, Reason.INSUFFICIENT_RESOURCES, f"Cannot start on this cluster: {never}.")
        limit, runs = self._limits.running_per_user, self._counts[job.owner]
        if limit is not None and runs >= limit and not job.recovering:
            return _waits(job, Reason.USER_LIMIT, _over_limit(job.owner, runs, limit))
        backs_off = job.not_before is not None and job.not_before > self._moment
        if backs_off and not job.recovering:
            return None
        places = _place(self._free, needs)
        obstacle = self._shortfall(needs) if places is None else self._obstacle(places, needs)
        if obstacle:
            self._hold(job, needs)
        elif backs_off:
            self._backing_off.append(job)
        if backs_off:
            return None
        if places is None or obstacle:
            return _waits(job, Reason.INSUFFICIENT_RESOURCES, f"Waits {obstacle}.")
        self._free, self._spare = _less(self._free, places, needs), _less(self._spare, places, needs)
        self._counts[job.owner] += not job.recovering
        return Admission(job.job_id, True, None, f"It takes {needs}.")

    def _obstacle(self, places: list[int], needs: Gang) -> str | None:
        """Why a gang that would fit must not start before another job; None where it may."""
        remaining = _less(self._free, places, needs)
        for job in self._backing_off:
            own = _place(remaining, gang(job.spec))
            if own is None:
                return f"behind {job.job_id}, which keeps its place while it recovers"
            remaining = _less(remaining, own, gang(job.spec))
        if _covers(self._spare, places, needs):
            return None
        first = next(job for job in self._overdue if not _covers(self._unusable(gang(job.spec)), places, needs))
        return (
            f"behind {first.job_id}, which has waited for {self._limits.passing_s / 60:g} minutes or more: "
            "no job that would delay it may start before it"
        )

    def _hold(self, job: Waiting, needs: Gang) -> None:
        """Where a waiting job is past its bound, keep for it what it can use."""
        if self._moment - job.since < timedelta(seconds=self._limits.passing_s):
            return
        self._overdue.append(job)
        both = zip(self._spare, self._unusable(needs), strict=True)
        self._spare = [replace(a, cpus=min(a.cpus, b.cpus), gpus=min(a.gpus, b.gpus)) for a, b in both]

    def _unusable(self, needs: Gang) -> list[NodeShape]:
        """Free resources that a gang cannot use, whichever running jobs end."""
        most = [min(needs.workers, node.holds(needs.cpus, needs.gpus)) for node in self._cluster.nodes]
        remaining = _less(self._free, most, needs)
        return [replace(node, cpus=max(0, node.cpus), gpus=max(0, node.gpus)) for node in remaining]

    def _shortfall(self, needs: Gang) -> str:
        free, whole = ClusterShape(tuple(self._free)), self._cluster
        if needs.all_gpus > free.gpus:
            return (
                f"for resources: needs {plural(needs.all_gpus, 'GPU')}, {free.gpus} free, {whole.gpus} in the cluster"
            )
        if needs.all_cpus > free.cpus:
            return (
                f"for resources: needs {plural(needs.all_cpus, 'CPU')}, {free.cpus} free, {whole.cpus} in the cluster"
            )
        fitting = free.holds(needs.cpus, needs.gpus)
        fit = f"{fitting} fit" if fitting > 1 else f"{fitting or 'none'} fits"
        return f"for resources: needs {needs}; {fit} on the nodes now"


def _waits(job: Waiting, reason: Reason, message: str) -> Admission:
    return Admission(job.job_id, False, reason, message)


def _over_limit(owner: str, runs: int, limit: int) -> str:
    return f"{owner} runs {plural(runs, 'job')}, and {limit} {'is' if limit == 1 else 'are'} allowed at a time."


# --- placing gangs on nodes -------------------------------------------------------------------------------------------


def _place(free: Sequence[NodeShape], needs: Gang) -> list[int] | None:
    """The number of workers on each node; None where they do not all fit."""
    places = _pack(free, needs)
    return places if sum(places) == needs.workers else None


def _pack(free: Sequence[NodeShape], needs: Gang) -> list[int]:
    """As many workers as fit, packed as Ray does: the emptiest node is filled first, then the next."""
    places, unplaced = [0] * len(free), needs.workers
    for index in sorted(range(len(free)), key=lambda index: -_score(free[index], needs)):
        places[index] = min(unplaced, free[index].holds(needs.cpus, needs.gpus))
        unplaced -= places[index]
    return places


def _score(node: NodeShape, needs: Gang) -> float:
    """Ray's score of a node: the fractions of its free resources that a worker would leave."""
    resources = [(node.cpus, needs.cpus), (node.gpus, needs.gpus)]
    return sum((has - takes) / has for has, takes in resources if has and takes)


def _less(free: Sequence[NodeShape], places: Sequence[int], needs: Gang) -> list[NodeShape]:
    """What remains free once a gang is placed."""
    return [
        replace(node, cpus=node.cpus - count * needs.cpus, gpus=node.gpus - count * needs.gpus)
        for node, count in zip(free, places, strict=True)
    ]


def _covers(free: Sequence[NodeShape], places: Sequence[int], needs: Gang) -> bool:
    """Whether the free resources are enough for these placements."""
    remaining = _less(free, places, needs)
    return all(node.cpus >= 0 and node.gpus >= 0 for node, count in zip(remaining, places, strict=True) if count)


def free_nodes(running: Sequence[Running], cluster: ClusterShape) -> list[NodeShape]:
    """The free resources of each node beside the running gangs.

    A gang may not fit where it is reported, as when the cluster has shrunk. What is missing is then taken from any node
    that has it, so that the totals are right.
    """
    free, ids = list(cluster.nodes), [node.id for node in cluster.nodes]
    for job in sorted(running, key=lambda job: not job.nodes):  # known placements first
        places = [job.nodes.count(node) for node in ids] if job.nodes else _pack(free, job.gang)
        missing = job.gang.workers - sum(places)
        free = _less(free, places, job.gang)
        short = [max(0, -node.cpus) for node in free], [max(0, -node.gpus) for node in free]
        cpus, gpus = missing * job.gang.cpus + sum(short[0]), missing * job.gang.gpus + sum(short[1])
        for index, node in enumerate(free):
            free[index] = replace(node, cpus=max(0, node.cpus - cpus), gpus=max(0, node.gpus - gpus))
            cpus, gpus = max(0, cpus - max(0, node.cpus)), max(0, gpus - max(0, node.gpus))
    return free

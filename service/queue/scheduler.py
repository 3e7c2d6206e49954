"""Who starts next.

Order: recovering jobs, then by priority, then by the time they have waited. A job starts with all its workers or not
at all, each worker whole on one node.

A job may pass one before it that has to wait, within a bound: until the one passed has waited for
`Limits.passing_s`, whatever is free may be used; from then on only what cannot delay it, so that the cluster drains
for it. A job that can never run here and one over its user's limit hold back nobody.

Ray chooses the nodes, by its PACK strategy, and this module goes by the same rule. Running gangs whose nodes are not
known are packed, in the order given, beside those whose nodes are. Ray has the last word: where it did otherwise, an
attempt waits in `starting`, and on several nodes a job may be delayed beyond its bound.
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

NEWCOMER = "~"
"""Stands for the id of a job that is not submitted yet; sorts after all that are."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits for an attempt."""

    job_id: str
    owner: str
    spec: JobSpec
    """Resolved."""
    priority: int
    since: datetime
    """When it began to wait."""
    not_before: datetime | None = None
    """It backs off until then. A recovering job that would fit keeps its room meanwhile: a newcomer could else take
    what it is about to use again."""
    recovering: bool = False


@dataclass(frozen=True)
class Running:
    """A job with an attempt under way."""

    job_id: str
    owner: str
    gang: Gang
    nodes: Sequence[str] = ()
    """The ids of its workers' nodes, one for each worker; empty where Ray has not placed it or is not asked."""


@dataclass(frozen=True)
class Limits:
    """What an operator sets."""

    running_per_user: int | None
    """Jobs of one user that may run at a time, recovering ones among them; None for any number."""
    passing_s: float
    """Seconds for which a waiting job may be passed by others that delay it."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(running_per_user=settings.running_per_user, passing_s=settings.passing_s)


@dataclass(frozen=True)
class Admission:
    """What was decided about a waiting job."""

    job_id: str
    start: bool
    reason: Reason | None
    """Why it waits; None where it starts."""
    message: str


def admit(
    waiting: Sequence[Waiting], running: Sequence[Running], cluster: ClusterShape, moment: datetime, limits: Limits
) -> list[Admission]:
    """Decide about every waiting job that does not back off, in the order they get their turn.

    Pure. ``waiting`` may come in any order, ``running`` should come in the order of their start where their nodes
    are not known.
    """
    turn = _Turn(waiting, running, cluster, moment, limits)
    decisions = [turn.decide(job) for job in in_turn(waiting)]
    return [decision for decision in decisions if decision]


def in_turn(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Waiting jobs in the order in which they are decided about."""
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
    """When a spec would start, were it submitted now by this owner, and why, in a sentence."""
    resolved = resolve(spec, cluster)
    newcomer = Waiting(NEWCOMER, owner, resolved, spec.priority, since=moment)
    found = admit([*waiting, newcomer], running, cluster, moment, limits)
    decision = next(admission for admission in found if admission.job_id == NEWCOMER)
    if decision.start:
        return "now", decision.message
    return "never" if impossible(resolved, cluster) else "later", decision.message


class _Turn:
    """The nodes while jobs are decided about, one after the other."""

    def __init__(
        self,
        waiting: Sequence[Waiting],
        running: Sequence[Running],
        cluster: ClusterShape,
        moment: datetime,
        limits: Limits,
    ) -> None:
        self._cluster, self._moment, self._limits = cluster, moment, limits
        self._free = left(running, cluster)
        self._spare = list(self._free)
        """What of the free is of no use to any job that may no longer be delayed."""
        self._overdue: list[Waiting] = []
        self._backing_off: list[Waiting] = []
        self._counts = Counter(job.owner for job in running)
        self._counts.update(job.owner for job in waiting if job.recovering)

    def decide(self, job: Waiting) -> Admission | None:
        """None for a job that backs off."""
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
        """Whom a gang that would fit must let go before it, and why."""
        left = _less(self._free, places, needs)
        for job in self._backing_off:
            own = _place(left, gang(job.spec))
            if own is None:
                return f"behind {job.job_id}, which keeps its place while it recovers"
            left = _less(left, own, gang(job.spec))
        if _covers(self._spare, places, needs):
            return None
        first = next(job for job in self._overdue if not _covers(self._useless(gang(job.spec)), places, needs))
        return (
            f"behind {first.job_id}: it has waited for {self._limits.passing_s / 60:g} minutes or more, "
            "and nothing that would delay it starts before it"
        )

    def _hold(self, job: Waiting, needs: Gang) -> None:
        """From its bound on, those behind a job that waits get only what is of no use to it."""
        if self._moment - job.since < timedelta(seconds=self._limits.passing_s):
            return
        self._overdue.append(job)
        both = zip(self._spare, self._useless(needs), strict=True)
        self._spare = [replace(a, cpus=min(a.cpus, b.cpus), gpus=min(a.gpus, b.gpus)) for a, b in both]

    def _useless(self, needs: Gang) -> list[NodeShape]:
        """What of the free a gang can never use, whichever of the running jobs end."""
        most = [min(needs.workers, node.holds(needs.cpus, needs.gpus)) for node in self._cluster.nodes]
        left = _less(self._free, most, needs)
        return [replace(node, cpus=max(0, node.cpus), gpus=max(0, node.gpus)) for node in left]

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
        return f"for resources: needs {needs}; {fit} on the nodes as they are"


def _waits(job: Waiting, reason: Reason, message: str) -> Admission:
    return Admission(job.job_id, False, reason, message)


def _over_limit(owner: str, runs: int, limit: int) -> str:
    return f"{owner} runs {plural(runs, 'job')}, and {limit} {'is' if limit == 1 else 'are'} allowed at a time."


# --- placing gangs on nodes -------------------------------------------------------------------------------------------


def _place(free: Sequence[NodeShape], needs: Gang) -> list[int] | None:
    """How many workers each node gets; None where they do not all fit."""
    places = _pack(free, needs)
    return places if sum(places) == needs.workers else None


def _pack(free: Sequence[NodeShape], needs: Gang) -> list[int]:
    """As many workers as fit, as Ray packs them: the emptiest node is filled up first, then the next."""
    places, left = [0] * len(free), needs.workers
    for index in sorted(range(len(free)), key=lambda index: -_score(free[index], needs)):
        places[index] = min(left, free[index].holds(needs.cpus, needs.gpus))
        left -= places[index]
    return places


def _score(node: NodeShape, needs: Gang) -> float:
    """Ray's: the shares of what is free that a worker would leave."""
    wanted = [(node.cpus, needs.cpus), (node.gpus, needs.gpus)]
    return sum((has - takes) / has for has, takes in wanted if has and takes)


def _less(free: Sequence[NodeShape], places: Sequence[int], needs: Gang) -> list[NodeShape]:
    return [
        replace(node, cpus=node.cpus - count * needs.cpus, gpus=node.gpus - count * needs.gpus)
        for node, count in zip(free, places, strict=True)
    ]


def _covers(free: Sequence[NodeShape], places: Sequence[int], needs: Gang) -> bool:
    left = _less(free, places, needs)
    return all(node.cpus >= 0 and node.gpus >= 0 for node, count in zip(left, places, strict=True) if count)


def left(running: Sequence[Running], cluster: ClusterShape) -> list[NodeShape]:
    """What running gangs leave free of each node.

    What does not fit where it is said to be, on a cluster that shrank or because Ray placed it otherwise, is taken from
    whatever node has it, so that the sums are right.
    """
    free, ids = list(cluster.nodes), [node.id for node in cluster.nodes]
    for job in sorted(running, key=lambda job: not job.nodes):  # those whose nodes are known come first
        places = [job.nodes.count(node) for node in ids] if job.nodes else _pack(free, job.gang)
        missing = job.gang.workers - sum(places)
        free = _less(free, places, job.gang)
        short = [max(0, -node.cpus) for node in free], [max(0, -node.gpus) for node in free]
        cpus, gpus = missing * job.gang.cpus + sum(short[0]), missing * job.gang.gpus + sum(short[1])
        for index, node in enumerate(free):
            free[index] = replace(node, cpus=max(0, node.cpus - cpus), gpus=max(0, node.gpus - gpus))
            cpus, gpus = max(0, cpus - max(0, node.cpus)), max(0, gpus - max(0, node.gpus))
    return free

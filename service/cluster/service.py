"""What the cluster's route does: the scheduler's own view, asked the same questions as the controller asks it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from service.adapters.ray_cluster import ClusterUnreachable, Machine, living
from service.auth.caller import Caller
from service.cluster.schemas import ClusterView, NodeView, QueuedView, RunningView, Totals
from service.context.app_state import AppState
from service.db.tables import Attempt, Job, now
from service.http.problems import unavailable
from service.jobs import repository
from service.jobs.queueing import running_entries, waiting_entries
from service.jobs.schemas import State
from service.queue.scheduler import Admission, Limits, Running, Waiting, admit, in_turn, left
from trainer.spec.cluster import Gang, NodeShape
from trainer.spec.plan import gang


def show(parts: AppState, caller: Caller) -> ClusterView:
    """The cluster as it is now; raises 503 where Ray does not say."""
    try:
        machines, placements = parts.ray.machines(), parts.ray.placements()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error
    with parts.database.read() as session:
        jobs, active = repository.waiting(session), repository.active(session)
    shape = living(machines)
    queue, taken = waiting_entries(jobs, shape, parts.kinds), running_entries(active, placements)
    free = left(taken, shape)
    decisions = {
        found.job_id: found for found in admit(list(queue.values()), taken, shape, now(), Limits.of(parts.settings))
    }
    by_id = {job.id: job for job in jobs}
    return ClusterView(
        totals=Totals(nodes=len(free), **_amounts(shape.nodes, free)),
        nodes=_nodes(machines, free),
        running=_running(caller, active, taken),
        queue=[
            _queued(caller, by_id[entry.job_id], entry, decisions.get(entry.job_id), position)
            for position, entry in enumerate(in_turn(queue.values()), 1)
        ],
    )


def _nodes(machines: Sequence[Machine], free: Sequence[NodeShape]) -> list[NodeView]:
    """Every node with what is free of those that are alive."""
    by_id = {node.id: node for node in free}
    found = []
    for machine in machines:
        has = machine.shape
        none = NodeShape(0, 0, has.id, has.ip)
        amounts = _amounts([has], [by_id[has.id]]) if machine.alive else _amounts([none], [none])
        state = "alive" if machine.alive else "dead"
        about = {"id": has.id, "address": has.ip, "state": state, "message": machine.message}
        found.append(NodeView.model_validate(about | {"gpu_model": machine.gpu_model} | amounts))
    return found


def _amounts(has: Iterable[NodeShape], free: Iterable[NodeShape]) -> dict[str, int]:
    pairs = list(zip(has, free, strict=True))
    cpus, cpus_free = sum(node.cpus for node, _ in pairs), sum(node.cpus for _, node in pairs)
    gpus, gpus_free = sum(node.gpus for node, _ in pairs), sum(node.gpus for _, node in pairs)
    return {
        "cpus": cpus,
        "cpus_used": cpus - cpus_free,
        "cpus_free": cpus_free,
        "gpus": gpus,
        "gpus_used": gpus - gpus_free,
        "gpus_free": gpus_free,
    }


def _running(
    caller: Caller, active: Sequence[tuple[Job, Attempt | None]], taken: Sequence[Running]
) -> list[RunningView]:
    holding = {entry.job_id: entry for entry in taken}
    return [
        RunningView(
            **_held(caller, job, holding[job.id].gang),
            attempt=attempt.number,
            nodes=list(holding[job.id].nodes),
            since=attempt.started_at,
        )
        for job, attempt in active
        if attempt and job.id in holding
    ]


def _queued(caller: Caller, job: Job, entry: Waiting, decision: Admission | None, position: int) -> QueuedView:
    """One that the scheduler does not decide about backs off: its own reason and message say so."""
    reason, message = (decision.reason, decision.message) if decision else (job.reason, job.message)
    return QueuedView(
        **_held(caller, job, gang(entry.spec)),
        position=position,
        since=entry.since,
        starts=bool(decision and decision.start),
        reason=reason,
        message=message if caller.sees(job.owner) else None,
    )


def _held(caller: Caller, job: Job, needs: Gang) -> dict[str, Any]:
    seen = caller.sees(job.owner)
    return {
        "id": job.id if seen else None,
        "name": job.name if seen else None,
        "owner": job.owner if seen else None,
        "state": State(job.state),
        "priority": job.priority,
        "workers": needs.workers,
        "cpus": needs.all_cpus,
        "gpus": needs.all_gpus,
    }

"""The cluster view. It asks the same scheduler functions as the controller, so both agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from service.adapters.ray_cluster import Machine, live_shape
from service.auth.caller import Caller
from service.cluster.schemas import ClusterView, NodeView, QueuedView, RunningView, Totals
from service.context.app_state import AppState
from service.db.tables import Attempt, Job, now
from service.jobs import repository
from service.jobs.queueing import running_entries, waiting_entries
from service.jobs.state import State
from service.queue.scheduler import Admission, Limits, Running, Waiting, admit, free_nodes, scheduling_order
from trainer.spec.cluster import Gang, NodeShape
from trainer.spec.plan import gang


def show(state: AppState, caller: Caller) -> ClusterView:
    """The cluster as it is now. Raises `ClusterUnreachable`."""
    machines, placements = state.ray.machines(), state.ray.placements()
    with state.database.read() as session:
        jobs, live = repository.waiting(session), repository.live(session)
    shape = live_shape(machines)
    queue, held = waiting_entries(jobs, shape, state.kinds), running_entries(live, placements)
    free = free_nodes(held, shape)
    admissions = admit(list(queue.values()), held, shape, now(), Limits.of(state.settings))
    decisions = {admission.job_id: admission for admission in admissions}
    by_id = {job.id: job for job in jobs}
    return ClusterView(
        totals=Totals(nodes=len(free), **_amounts(shape.nodes, free)),
        nodes=_nodes(machines, free),
        running=_running(caller, live, held),
        queue=[
            _queued(caller, by_id[entry.job_id], entry, decisions.get(entry.job_id), position)
            for position, entry in enumerate(scheduling_order(queue.values()), 1)
        ],
    )


def _nodes(machines: Sequence[Machine], free: Sequence[NodeShape]) -> list[NodeView]:
    """Every node; ``free`` has the free resources of those that are alive."""
    by_id = {node.id: node for node in free}
    views = []
    for machine in machines:
        total = machine.shape
        nothing = NodeShape(0, 0, total.id, total.ip)
        amounts = _amounts([total], [by_id[total.id]]) if machine.alive else _amounts([nothing], [nothing])
        fields = {
            "id": total.id,
            "address": total.ip,
            "state": "alive" if machine.alive else "dead",
            "message": machine.message,
            "gpu_model": machine.gpu_model,
        }
        views.append(NodeView.model_validate(fields | amounts))
    return views


def _amounts(total: Iterable[NodeShape], free: Iterable[NodeShape]) -> dict[str, int]:
    pairs = list(zip(total, free, strict=True))
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


def _running(caller: Caller, live: Sequence[tuple[Job, Attempt | None]], held: Sequence[Running]) -> list[RunningView]:
    by_job = {entry.job_id: entry for entry in held}
    return [
        RunningView(
            **_job_fields(caller, job, by_job[job.id].gang),
            attempt=attempt.number,
            nodes=list(by_job[job.id].nodes),
            since=attempt.started_at,
        )
        for job, attempt in live
        if attempt and job.id in by_job
    ]


def _queued(caller: Caller, job: Job, entry: Waiting, decision: Admission | None, position: int) -> QueuedView:
    """A waiting job. If the scheduler did not consider it, it is backing off, and its own reason and message say so."""
    reason, message = (decision.reason, decision.message) if decision else (job.reason, job.message)
    return QueuedView(
        **_job_fields(caller, job, gang(entry.spec)),
        position=position,
        since=entry.since,
        starts=bool(decision and decision.start),
        reason=reason,
        message=message if caller.sees(job.owner) else None,
    )


def _job_fields(caller: Caller, job: Job, needs: Gang) -> dict[str, Any]:
    visible = caller.sees(job.owner)
    return {
        "id": job.id if visible else None,
        "name": job.name if visible else None,
        "owner": job.owner if visible else None,
        "state": State(job.state),
        "priority": job.priority,
        "workers": needs.workers,
        "cpus": needs.all_cpus,
        "gpus": needs.all_gpus,
    }

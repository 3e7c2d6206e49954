"""Response models of the cluster route. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from service.http.schemas import View
from service.jobs.state import State


class Amounts(View):
    """CPUs and GPUs: the total, what jobs hold, and what is free."""

    cpus: int
    cpus_used: int
    cpus_free: int
    gpus: int
    gpus_used: int
    gpus_free: int


class NodeView(Amounts):
    """One machine of the cluster."""

    id: str
    """Ray's node id."""
    address: str
    state: Literal["alive", "dead"]
    """Ray lists dead nodes for a while."""
    message: str
    """Ray's explanation of the state."""
    gpu_model: str | None
    """As Ray names it, for example `H100`; null if there is no GPU, or Ray does not know its model."""


class Totals(Amounts):
    """Totals over all nodes that are alive."""

    nodes: int


class Held(View):
    """A job that waits or runs. Its id, name and owner are null if the caller may not see the job."""

    id: str | None
    name: str | None
    owner: str | None
    state: State
    priority: int
    workers: int
    cpus: int
    """For all workers together."""
    gpus: int
    """For all workers together."""


class QueuedView(Held):
    """A job that waits for an attempt."""

    position: int
    """Position 1 comes first. A job that can start overtakes those before it that cannot, within limits."""
    since: datetime
    """When it began to wait."""
    starts: bool
    """Whether the controller will start it in its next round."""
    reason: str | None
    """Why it waits, as a stable code for programs."""
    message: str | None
    """Why it waits, for people; null if the caller may not see the job."""


class RunningView(Held):
    """A job with an attempt under way."""

    attempt: int
    nodes: list[str]
    """Node ids, one for each worker; empty until Ray has placed them."""
    since: datetime
    """When the attempt began."""


class ClusterView(View):
    """The machines, the jobs that run on them, and the queue."""

    totals: Totals
    nodes: list[NodeView]
    running: list[RunningView]
    """In the order of submission."""
    queue: list[QueuedView]
    """In the order in which the scheduler considers them."""

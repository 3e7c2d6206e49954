"""What the cluster's route gives. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from service.http.schemas import View
from service.jobs.schemas import State


class Amounts(View):
    """CPUs and GPUs: what there is, what jobs hold of it, and what is left."""

    cpus: int
    cpus_used: int
    cpus_free: int
    gpus: int
    gpus_used: int
    gpus_free: int


class NodeView(Amounts):
    """One machine of the cluster."""

    id: str
    """Ray's."""
    address: str
    state: Literal["alive", "dead"]
    """Ray tells of dead ones for a while."""
    message: str
    """What Ray says of that."""
    gpu_model: str | None
    """As Ray names it, for example `H100`; null where it does not say, or there is none."""


class Totals(Amounts):
    """Of all nodes that are alive."""

    nodes: int


class Held(View):
    """A job that waits or runs. What names it is null where the caller may not see the job."""

    id: str | None
    name: str | None
    owner: str | None
    state: State
    priority: int
    workers: int
    cpus: int
    """Of all workers together."""
    gpus: int
    """Of all workers together."""


class QueuedView(Held):
    """A job that waits for an attempt."""

    position: int
    """1 gets its turn first. One that can start passes those before it that cannot, within bounds."""
    since: datetime
    """When it began to wait."""
    starts: bool
    """Whether it would start now: the controller starts it in its next round."""
    reason: str | None
    """Typed cause of why it waits, for programs."""
    message: str | None
    """The same for people; null where the job is not named."""


class RunningView(Held):
    """A job with an attempt under way."""

    attempt: int
    nodes: list[str]
    """Ids of its workers' nodes, one for each worker; empty until Ray has placed them."""
    since: datetime
    """When the attempt began."""


class ClusterView(View):
    """What the machines have, who uses it, and who waits for it."""

    totals: Totals
    nodes: list[NodeView]
    running: list[RunningView]
    """In the order in which they were submitted."""
    queue: list[QueuedView]
    """In the order of their turns."""

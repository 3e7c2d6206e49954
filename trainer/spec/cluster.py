"""What a cluster's nodes have, and what a job's workers need of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

MAX_AUTO_CPUS = 16
"""The most CPUs that `auto` gives a worker: with more threads in one process, small matrix products become slower."""


@dataclass(frozen=True)
class NodeShape:
    """The CPUs and GPUs that one node has, or has left, in whole numbers."""

    cpus: int
    gpus: int = 0
    id: str = ""
    """Ray's id of the node."""
    ip: str = ""

    def holds(self, cpus: int, gpus: int) -> int:
        """How many workers of this size fit on it."""
        return min(self.cpus // cpus, self.gpus // gpus) if gpus else self.cpus // cpus


@dataclass(frozen=True)
class ClusterShape:
    """The CPUs and GPUs of all nodes of a cluster, in use or not."""

    nodes: tuple[NodeShape, ...]

    @classmethod
    def of(cls, cpus: int, gpus: int = 0) -> Self:
        """A cluster of one node."""
        return cls((NodeShape(cpus, gpus),))

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    @property
    def without_nodes(self) -> bool:
        """Whether no node has joined on which anything could run; the head alone may have no CPUs."""
        return not self.cpus

    def holds(self, cpus: int, gpus: int) -> int:
        """How many workers of this size fit, each on one node."""
        return sum(node.holds(cpus, gpus) for node in self.nodes)

    def cpus_for(self, workers: int, gpus: int) -> int:
        """The most CPUs per worker with which all ``workers`` fit; 1 if they do not fit even then."""
        return max((n for n in range(1, MAX_AUTO_CPUS + 1) if self.holds(n, gpus) >= workers), default=1)


@dataclass(frozen=True)
class Gang:
    """Workers that start together or not at all, each with these CPUs and GPUs on one node."""

    workers: int
    cpus: int
    gpus: int = 0

    @property
    def all_cpus(self) -> int:
        return self.workers * self.cpus

    @property
    def all_gpus(self) -> int:
        return self.workers * self.gpus

    def __str__(self) -> str:
        each = f"{plural(self.gpus, 'GPU')} and {plural(self.cpus, 'CPU')}" if self.gpus else plural(self.cpus, "CPU")
        return f"{plural(self.workers, 'worker')} of {each}{' each' if self.workers > 1 else ''}"


def plural(count: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

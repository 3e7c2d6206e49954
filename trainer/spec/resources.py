"""The resources section of the specs of jobs that may have several workers."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from trainer.spec.base import SpecModel
from trainer.spec.cluster import ClusterShape
from trainer.spec.common import Auto, CpuCores, Workers

CPU_TOKENS: Final = 8192
"""Tokens of images that a worker processes at once on a CPU: more would be no faster and need more memory."""


class ResourcesSpec(SpecModel):
    """The job's workers, each a process with its own devices. `auto` is chosen for the cluster; the plan shows it."""

    workers: Workers | Auto = "auto"
    """Processes that work together; divides the global batch."""
    gpus_per_worker: Literal[0, 1] | Auto = "auto"
    """GPUs of one worker: 1, or 0 to train on the CPU."""
    cpus_per_worker: CpuCores | Auto = "auto"
    """CPU cores of one worker; on a CPU also the number of threads (which changes the last bits of the result)."""
    loader_processes: Annotated[int, Field(ge=0, le=256)] | Auto = "auto"
    """Processes of each worker that read, decode and crop images; 0: threads of the worker itself. `auto`: on a GPU one
    less than `cpus_per_worker`, on the CPU 0."""

    def settled(self, cluster: ClusterShape, shares: int | None, most: int | None = None) -> dict[str, int]:
        """The fields without `auto`, for work that can be cut into ``shares`` equal parts; None: into any number, or
        any up to ``most``.

        `workers: auto` is the greatest number that divides ``shares`` and has a GPU for each; 1 on the CPU.
        """
        gpus = self.gpus_per_worker if self.gpus_per_worker != "auto" else int(cluster.gpus > 0)
        cpus, workers = self.cpus_per_worker, self.workers
        if workers == "auto":
            limit = max(1, cluster.holds(1 if cpus == "auto" else cpus, gpus)) if gpus else 1
            limit = limit if most is None else min(limit, most)
            workers = limit if shares is None else divisor(shares, limit)
        if cpus == "auto":
            cpus = cluster.cpus_for(workers, gpus)
        written = self.loader_processes
        loaders = written if written != "auto" else max(1, cpus - 1) if gpus else 0
        return {"workers": workers, "gpus_per_worker": gpus, "cpus_per_worker": cpus, "loader_processes": loaders}


def divisor(share: int, limit: int) -> int:
    """The largest divisor of ``share`` that is at most ``limit`` (and at least 1)."""
    return max(n for n in range(1, max(1, min(share, limit)) + 1) if share % n == 0)

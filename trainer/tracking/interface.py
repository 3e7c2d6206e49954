"""What records an attempt's metrics and tags, without MLflow: the driver and the training loop know only this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Purpose = Literal["training", "evaluation"]


@dataclass(frozen=True)
class UsedDataset:
    """A dataset that a run reads, for MLflow's pages."""

    purpose: Purpose
    name: str
    uri: str
    fingerprint: str
    """Identity of its images; MLflow shows the first digits."""
    images: int
    """Readable ones."""


class Recorder(Protocol):
    """Sends metrics and tags to the attempt's MLflow run; on rank 0 only."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of optimiser step ``step``. Neither waits for MLflow nor fails while it is unreachable."""

    def log_curve(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record points of curves like `log`, whose values are not among the run's newest: there may be very many."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run. Neither waits for MLflow nor fails while it is unreachable."""

    def use(self, datasets: Sequence[UsedDataset]) -> None:
        """Record the datasets that the run reads. Neither waits for MLflow nor fails while it is unreachable."""

    def drain(self) -> None:
        """Wait until everything has been sent; raises `StorageError`."""

    def close(self) -> None:
        """`drain`, and stop recording."""

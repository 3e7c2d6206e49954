"""What makes a checkpoint count, and which one is the best: trainer and service read it alike."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from trainer.spec.metric_keys import RECONSTRUCTION_RATIO


class FileRecord(BaseModel):
    size: int
    sha256: str


class Manifest(BaseModel):
    """What makes a checkpoint count: written last."""

    attempt: int
    step: int
    metrics: dict[str, float]
    """Of an evaluation at this very step."""
    files: dict[str, FileRecord]


def best(manifests: Iterable[Manifest], metric: str = RECONSTRUCTION_RATIO) -> Manifest | None:
    """The one with the lowest ``metric``, which retention keeps; None where none was evaluated."""
    rated = [manifest for manifest in manifests if metric in manifest.metrics]
    return min(rated, key=lambda manifest: manifest.metrics[metric], default=None)

"""A checkpoint's manifest, and which checkpoint is the best, for trainer and service alike."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from trainer.spec.metric_keys import RECONSTRUCTION_RATIO


class FileRecord(BaseModel):
    """Size and checksum of a checkpoint's file."""

    size: int
    """Bytes."""
    sha256: str


class Manifest(BaseModel):
    """Lists a checkpoint's files. It is written last: a checkpoint without a manifest does not count."""

    attempt: int
    step: int
    metrics: dict[str, float]
    """Metrics of an evaluation at the checkpoint's own step; empty if there was none."""
    files: dict[str, FileRecord]


class Damage(BaseModel):
    """What an attempt found wrong with a committed checkpoint, which does not count while its folder holds this."""

    attempt: int
    """The attempt that found it."""
    why: str


def best(manifests: Iterable[Manifest], metric: str = RECONSTRUCTION_RATIO) -> Manifest | None:
    """The checkpoint with the lowest ``metric``, which retention keeps; None if none was evaluated."""
    rated = [manifest for manifest in manifests if metric in manifest.metrics]
    return min(rated, key=lambda manifest: manifest.metrics[metric], default=None)

"""What the training loop is given by the process that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from trainer.data.cache import Cache
from trainer.protocol.command import Action
from trainer.storage import Store


class Recorder(Protocol):
    """Receives metrics and the run's tags, on rank 0 only.

    Neither method blocks, and neither fails while the tracking server is unreachable.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...


@dataclass
class WorkerContext:
    """One worker of one attempt."""

    store: Store
    """The run's artifact folder."""
    attempt: int
    since_attempt: int
    """Training resumes from checkpoints of this attempt or later ones."""
    recorder: Recorder | None
    """None on every rank but the first."""
    wanted: Callable[[], Action | None] = lambda: None
    """The command that this rank has received."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Cache = field(default_factory=Cache)
    """This node's copies of datasets and their indexes."""
    dataset_roots: tuple[str, ...] | None = None
    """Folders that datasets must lie in; None allows any location."""

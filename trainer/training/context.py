"""What the training loop needs from the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from trainer.data.cache import Cache
from trainer.protocol.command import Action
from trainer.storage import Store
from trainer.tracking.activity import ActivityTracker
from trainer.tracking.interface import Recorder


class CheckpointPlace(Protocol):
    """Where an attempt finds and stores checkpoints."""

    @property
    def store(self) -> Store:
        """The folder below which they lie."""

    @property
    def attempt(self) -> int: ...

    @property
    def since_attempt(self) -> int:
        """Training resumes from checkpoints of this attempt or later ones."""


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
    requested_action: Callable[[], Action | None] = lambda: None
    """The command that this rank has received."""
    tracker: ActivityTracker = field(default_factory=ActivityTracker)
    """What this worker is doing; heartbeats carry rank 0's."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Cache = field(default_factory=Cache)
    """This node's copies of datasets and their indexes."""
    dataset_roots: tuple[str, ...] | None = None
    """Folders that datasets must lie in; None allows any location."""

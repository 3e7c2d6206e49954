"""The worker in which an attempt measures or computes features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from trainer.data.cache import Cache
from trainer.protocol.command import Action
from trainer.scoring.interruption import Interrupted
from trainer.storage import Store
from trainer.tracking.activity import ActivityTracker
from trainer.tracking.interface import Recorder


@dataclass
class Place:
    """The worker that takes part in an attempt."""

    store: Store
    """The run's artifact folder."""
    device: torch.device
    recorder: Recorder | None = None
    """None on every rank but the first."""
    requested_action: Callable[[], Action | None] = lambda: None
    """The command that this rank has received."""
    tracker: ActivityTracker = field(default_factory=ActivityTracker)
    cache: Cache = field(default_factory=Cache)

    def check(self) -> None:
        """Raise `Interrupted` if this rank has received a command."""
        action = self.requested_action()
        if action:
            raise Interrupted(action)

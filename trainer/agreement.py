"""What all workers of an attempt do together."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from trainer.protocol.command import ACTIONS, Action

PATIENCE = timedelta(hours=24)

T = TypeVar("T")


class Agreement:
    """All ranks take the same action and the same checkpoints at the same step."""

    def __init__(self, world: int) -> None:
        # On the CPU beside the gradients' group: a GPU never has to be waited for to read the answer. Patient: the
        # other ranks wait here while the first looks at every image of a large dataset.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None

    def __call__(self, wanted: Action | None, due: bool) -> tuple[Action | None, bool]:
        """The heaviest action any rank wants, and whether any has a checkpoint due.

        Every rank calls this at the same step.
        """
        if self._group is None:
            return wanted, due
        weights = torch.tensor([ACTIONS.index(wanted), int(due)], dtype=torch.int32)
        dist.all_reduce(weights, op=dist.ReduceOp.MAX, group=self._group)
        weight, taken = weights.tolist()
        return ACTIONS[weight], bool(taken)

    def share(self, value: T | None) -> T:
        """Rank 0's value on every rank."""
        if self._group is None:
            box: list[T | None] = [value]
        else:
            box = [value]
            dist.broadcast_object_list(box, src=0, group=self._group)
        shared = box[0]
        if shared is None:
            raise ValueError("rank 0 has nothing to share")
        return shared

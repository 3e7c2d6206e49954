"""Agreements between all workers of an attempt."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from trainer.protocol.command import ACTIONS, Action

PATIENCE = timedelta(hours=24)

T = TypeVar("T")


class Agreement:
    """All ranks take the same action and the same checkpoints at the same step."""

    def __init__(self, world: int) -> None:
        # A CPU group beside the gradients' group, so that reading the answer never waits for a GPU. Its time-out is
        # long: the other ranks wait here while rank 0 inspects every image of a large dataset.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None

    def __call__(self, wanted: Action | None, due: bool) -> tuple[Action | None, bool]:
        """The action of the highest precedence that any rank wants, and whether any rank has a checkpoint due.

        Every rank calls this at the same step.
        """
        if self._group is None:
            return wanted, due
        votes = torch.tensor([ACTIONS.index(wanted), int(due)], dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        precedence, any_due = votes.tolist()
        return ACTIONS[precedence], bool(any_due)

    def meet(self) -> None:
        """Return once every rank has called this, however long the slowest one takes."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def gather(self, own: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank. Every rank calls this with its own value."""
        if self._group is None:
            return [own]
        values: list[T | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, own, group=self._group)
        return cast("list[T]", values)  # each place has been filled

    def share(self, value: T | None) -> T:
        """Rank 0's value on every rank. Every rank calls this; only rank 0's ``value`` counts."""
        objects: list[T | None] = [value]
        if self._group is not None:
            dist.broadcast_object_list(objects, src=0, group=self._group)
        shared = objects[0]
        if shared is None:
            raise ValueError("rank 0 has nothing to share")
        return shared

"""Resuming: which checkpoint an attempt begins with, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from trainer.agreement import Agreement
from trainer.errors import DamagedCheckpoint, StorageError
from trainer.logger import logger
from trainer.protocol.checkpoint import Damage
from trainer.storage import Store
from trainer.training import checkpoint as checkpoints
from trainer.training.checkpoint import Committed, Damaged
from trainer.training.context import CheckpointPlace

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class Resumable(Protocol[M_co]):
    """The state of a training."""

    def load(self, store: Store, checkpoint: Committed) -> M_co:
        """Fill the state; returns the checkpoint's metadata. Raises `DamagedCheckpoint`, before it fills anything."""


@dataclass(frozen=True)
class Resumed(Generic[M]):
    """The checkpoint that was loaded."""

    checkpoint: Committed
    metadata: M
    notice: str
    """Which newer checkpoints are damaged; empty if there are none."""


def resume(state: Resumable[M], context: CheckpointPlace, agree: Agreement, rank: int) -> Resumed[M] | None:
    """Load the newest sound checkpoint into ``state``; returns None if the job has not committed any.

    Every rank calls this; it returns once all of them have the state. Rank 0 alone tells which checkpoints are damaged:
    where only another rank reads other bytes, the fault is that node's, and the attempt ends with `DamagedCheckpoint`.
    Raises `StorageError` if every committed checkpoint is damaged.
    """
    (resumed,) = agree.share((_load_newest(state, context),) if rank == 0 else None)
    if resumed and rank > 0:
        state.load(context.store, resumed.checkpoint)
    agree.meet()
    return resumed


def _load_newest(state: Resumable[M], context: CheckpointPlace) -> Resumed[M] | None:
    store = context.store
    sound, damaged = checkpoints.inspect(store, context.since_attempt)
    found: list[Damaged] = []  # those of which only their files show it, newest first
    for checkpoint in reversed(sound):
        try:
            metadata = state.load(store, checkpoint)
        except DamagedCheckpoint as error:
            logger.warning("The checkpoint %s is damaged, trying the one before it: %s", checkpoint.folder, error)
            manifest = checkpoint.manifest
            found.append(Damaged(checkpoint.folder, manifest.attempt, manifest.step, str(error)))
        else:
            _set_aside(context, found)
            return Resumed(checkpoint, metadata, _notice(checkpoint, found))
    unusable = [*damaged, *found]
    if unusable:
        reasons = "; ".join(each.why for each in unusable)
        raise StorageError(
            f"none of the job's checkpoints can be used: {reasons}. Restore their files, or give up what was trained "
            "and retry the job from scratch"
        )
    return None


def _set_aside(context: CheckpointPlace, found: Sequence[Damaged]) -> None:
    """Only now that an older checkpoint was sound: if all seem damaged, this node may be what is broken."""
    for each in found:
        checkpoints.set_aside(context.store, each.folder, Damage(attempt=context.attempt, why=each.why))


def _notice(checkpoint: Committed, found: list[Damaged]) -> str:
    if not found:
        return ""
    reasons = "; ".join(each.why for each in found)
    return (
        f"Resumed from {checkpoint.folder}, because newer checkpoints are damaged: {reasons}. They do not count any "
        "more; check the storage"
    )

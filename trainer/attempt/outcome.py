"""The attempt's last word. Apart from `control.py`, which needs torch: the driver writes it too."""

from __future__ import annotations

from contextlib import nullcontext

from trainer.protocol.names import outcome_file
from trainer.protocol.outcome import Outcome, Reason
from trainer.storage import Store, patience

PATIENCE_SECONDS = {Reason.STORAGE_ERROR: 20.0, Reason.PREEMPTED: 8.0}
"""A storage that has just been the failure has been waited for already, and nobody hears from the attempt meanwhile;
one that was stopped is killed before long."""


def write_outcome(store: Store, attempt: int, outcome: Outcome) -> None:
    """Store how an attempt ended: its last act."""
    store.write(outcome_file(attempt), outcome.model_dump_json(indent=1).encode())


def settle_outcome(store: Store, attempt: int, failed: Outcome | None) -> Outcome:
    """The outcome that counts: the one stored, which nothing that fails later takes away, else the failure, stored now.

    Raises `StorageError`.
    """
    seconds = PATIENCE_SECONDS.get(failed.reason) if failed and failed.reason else None
    with patience(seconds) if seconds else nullcontext():
        if failed is None or store.exists(outcome_file(attempt)):
            return Outcome.model_validate_json(store.read(outcome_file(attempt)))
        write_outcome(store, attempt, failed)
    return failed

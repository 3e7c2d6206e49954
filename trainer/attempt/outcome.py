"""The outcome file, which an attempt writes last. Without torch: the driver writes it too."""

from __future__ import annotations

from contextlib import nullcontext

from trainer.protocol.command import Action
from trainer.protocol.names import outcome_file
from trainer.protocol.outcome import Outcome, Reason
from trainer.storage import Store, patience

PATIENCE_SECONDS = {Reason.STORAGE_ERROR: 20.0, Reason.PREEMPTED: 8.0}
"""Seconds to retry after failures that leave little time: after a storage error the attempt has already waited for the
storage, without a heartbeat to the service; a process that is preempted will soon be killed."""


def outcome_after(action: Action | None, checkpoint: str | None = None) -> Outcome:
    """The outcome of an attempt that left early because of ``action``, or that completed its work if there was none."""
    if action is None:
        return Outcome(state="succeeded", checkpoint=checkpoint)
    if action == "preempt":
        stored = f", and stored {checkpoint} first" if checkpoint else ""
        message = f"The attempt was told to leave (SIGTERM, or a node is drained){stored}"
        return Outcome(state="failed", reason=Reason.PREEMPTED, message=message, checkpoint=checkpoint)
    return Outcome(state="cancelled" if action == "cancel" else "paused", checkpoint=checkpoint)


def write_outcome(store: Store, attempt: int, outcome: Outcome) -> None:
    """Store how an attempt ended: its last act."""
    store.write(outcome_file(attempt), outcome.model_dump_json(indent=1).encode())


def read_outcome(store: Store, attempt: int) -> Outcome:
    """The outcome that an attempt has stored; raises `StorageError`."""
    return Outcome.model_validate_json(store.read(outcome_file(attempt)))


def settle_outcome(store: Store, attempt: int, outcome: Outcome) -> Outcome:
    """The attempt's final outcome: the one already stored, which no later failure replaces, or else ``outcome``, which
    is stored now. Raises `StorageError`.
    """
    seconds = PATIENCE_SECONDS.get(outcome.reason) if outcome.reason else None
    with patience(seconds) if seconds else nullcontext():
        if store.exists(outcome_file(attempt)):
            return read_outcome(store, attempt)
        write_outcome(store, attempt, outcome)
    return outcome

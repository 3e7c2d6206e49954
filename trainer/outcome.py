"""The attempt's last word. Apart from `control.py`, which needs torch: the driver writes it too."""

from __future__ import annotations

from trainer.spec.job import Outcome
from trainer.spec.names import outcome_file
from trainer.storage import Store


def write_outcome(store: Store, attempt: int, outcome: Outcome) -> None:
    """Store how an attempt ended: its last act."""
    store.write(outcome_file(attempt), outcome.model_dump_json(indent=1).encode())


def settle_outcome(store: Store, attempt: int, failed: Outcome | None) -> Outcome:
    """The outcome that counts: the one stored, which nothing that fails later takes away, else the failure, stored now.

    Raises `StorageError`.
    """
    if failed is None or store.exists(outcome_file(attempt)):
        return Outcome.model_validate_json(store.read(outcome_file(attempt)))
    write_outcome(store, attempt, failed)
    return failed

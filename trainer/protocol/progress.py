"""The progress that a running attempt reports."""

from __future__ import annotations

from trainer.protocol.message import Message


class Newest(Message):
    """An attempt's newest metrics; the run tag `rcmae.newest`."""

    attempt: int
    step: int
    values: dict[str, float]
    """The newest value of every metric that the attempt has logged."""
    images_per_s: float | None = None
    """Wall-clock rate since the first record, evaluations and checkpoints included; None before the second record."""

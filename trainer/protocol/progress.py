"""What a running attempt says of its progress."""

from __future__ import annotations

from trainer.protocol.message import Message


class Newest(Message):
    """An attempt's newest metrics; the run tag `rcmae.newest`."""

    attempt: int
    step: int
    values: dict[str, float]
    """The newest value of every metric that the attempt has logged."""
    images_per_s: float | None = None
    """By the clock since its first record, with evaluations and checkpoints; None before there are two."""

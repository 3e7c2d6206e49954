"""Lines of an attempt's logs."""

from __future__ import annotations

from typing import Literal

from trainer.protocol.message import Message


class LogLine(Message):
    """One line of an attempt's logs."""

    time: float
    """Seconds since 1970."""
    level: Literal["debug", "info", "warning", "error"]
    source: str
    """`driver` or `rank-<n>`."""
    message: str

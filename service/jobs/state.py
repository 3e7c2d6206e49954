"""The states of a job."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in {State.SUCCEEDED, State.FAILED, State.CANCELLED}


ACTIVE: Final = (State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING, State.CANCELLING)
"""States in which an attempt may be under way."""
LIVE: Final = (State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING)
"""States of jobs that have a live attempt, or that are to be ended."""
WAITING: Final = (State.QUEUED, State.RECOVERING)
"""States of jobs that wait for an attempt: the last one of a recovering job has ended."""
UNENDED: Final = tuple(state for state in State if not state.terminal)
"""States of jobs that have not ended."""

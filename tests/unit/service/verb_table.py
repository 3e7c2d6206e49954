"""What each verb does in each state: the one table that the tests know."""

from __future__ import annotations

STATES = [
    "queued",
    "starting",
    "running",
    "recovering",
    "pausing",
    "paused",
    "cancelling",
    "succeeded",
    "failed",
    "cancelled",
]

# Columns are STATES in their order. 409: refused; same: nothing changes; gone, edit and drain move to no state.
_TABLE = """
cancel         cancelled cancelling cancelling cancelling cancelling cancelled same 409  409    409
pause          paused    pausing    pausing    pausing    same       same      409  409  409    409
resume         409       409        409        409        409        queued    409  409  409    409
retry          409       409        409        409        409        409       409  409  queued queued
stop           succeeded drain      drain      drain      409        succeeded 409  409  409    409
delete         409       409        409        409        409        409       409  gone gone   gone
patch_priority edit      edit       edit       edit       edit       edit      edit 409  409    409
patch_notes    edit      edit       edit       edit       edit       edit      edit edit edit   edit
"""
ROWS = {row.split()[0]: dict(zip(STATES, row.split()[1:], strict=True)) for row in _TABLE.strip().splitlines()}
"""The word of each verb in each state."""

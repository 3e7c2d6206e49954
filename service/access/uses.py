"""Records the uses of tokens, and what was downloaded with them, after the responses."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from anyio import CapacityLimiter, to_thread

from service.auth.trail import Download, Trail, record_use
from service.db.database import Database

KEPT: Final = 10_000
"""Downloads that a process remembers as counted; beyond that it forgets them, and asks the database again."""


class Uses:
    """Records uses on one separate thread, which no request waits for.

    A token's use is recorded once a minute, and a download once a day: for all others nothing is written.
    """

    def __init__(self) -> None:
        self._recording: set[Hashable] = set()
        """Tokens, sessions and downloads that are being recorded."""
        self._counted: set[tuple[str, Download]] = set()
        """Downloads that the database has counted, with the ids of their tokens."""
        self._one_thread: CapacityLimiter | None = None

    async def record(self, trail: Trail, database: Database) -> None:
        """Record what a request has used, if that is not known yet. A failure is only logged."""
        token_id, download = trail.token_id, trail.downloaded
        used = trail.session or token_id
        if token_id is None or used is None:
            return
        minute = None if used in self._recording else trail.used_at
        counted = (token_id, download) if download else None
        if counted in self._recording or counted in self._counted:
            counted = None
        marks: set[Hashable] = {*([used] if minute else []), *([counted] if counted else [])}
        if not marks:
            return
        # A limiter of its own: while the database is busy with writes, this must not take threads from requests.
        self._one_thread = self._one_thread or CapacityLimiter(1)
        self._recording |= marks
        try:
            recorded = await to_thread.run_sync(
                record_use, database, token_id, trail.session, minute, counted and counted[1], limiter=self._one_thread
            )
        finally:
            self._recording -= marks
        if counted and recorded:
            self._remember(counted)

    def _remember(self, counted: tuple[str, Download]) -> None:
        if len(self._counted) >= KEPT:
            self._counted.clear()
        self._counted.add(counted)

"""Records the uses of tokens after the responses, and what of a version is used with them beside the responses."""

from __future__ import annotations

import asyncio
from asyncio import Task
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import Final, TypeAlias

from service.auth.trail import Trail, Use, record_use
from service.db.database import Database

KEPT: Final = 10_000
"""Uses of versions that a process remembers as recorded; beyond that it forgets those of earlier days, or else all, and
asks the database again."""

OfToken: TypeAlias = tuple[str, Use]
"""A use, with the id of the token."""


class Uses:
    """Records uses on one separate thread, which no request waits for.

    A token's use is recorded once a minute, and that of a version once a day: for all others nothing is written.
    """

    def __init__(self) -> None:
        self._minutes: set[str] = set()
        """Tokens and sessions whose use is being recorded."""
        self._recording: set[OfToken] = set()
        self._again: set[OfToken] = set()
        """Those of them that another request has made meanwhile."""
        self._known: set[OfToken] = set()
        """Those that the database has."""
        # A thread of its own: while the database is busy with writes, this must not take those of requests.
        self._one_thread = ThreadPoolExecutor(1, "uses")

    def begin(self, trail: Trail, database: Database) -> Task[None] | None:
        """Begin to record what of a version a request uses, beside its response; None if that is known.

        A failure is only logged. A long download keeps its version from its first byte on, not from its last.
        """
        if trail.token_id is None or trail.used is None:
            return None
        use = (trail.token_id, trail.used)
        if use in self._recording:
            self._again.add(use)
        if use in self._recording or use in self._known:
            return None
        self._recording.add(use)
        return asyncio.create_task(self._record(use, database))

    async def _record(self, use: OfToken, database: Database) -> None:
        """If it fails, it is tried once more for the requests that have made the same use meanwhile."""
        recorded, asked = False, True
        try:
            while asked and not recorded:
                self._again.discard(use)
                recorded = await self._write(database, use[0], None, None, use[1])
                asked = use in self._again
        finally:
            self._recording.discard(use)
            self._again.discard(use)
        if recorded:
            self._remember(use)

    async def end(self, trail: Trail, database: Database) -> None:
        """Record that a request's token or session was used, if that is not known yet. A failure is only logged."""
        used = trail.session or trail.token_id
        if trail.token_id is None or used is None or trail.used_at is None or used in self._minutes:
            return
        self._minutes.add(used)
        try:
            await self._write(database, trail.token_id, trail.session, trail.used_at, None)
        finally:
            self._minutes.discard(used)

    async def _write(
        self, database: Database, token_id: str, session: str | None, minute: datetime | None, use: Use | None
    ) -> bool:
        write = partial(copy_context().run, record_use, database, token_id, session, minute, use)
        return await asyncio.get_running_loop().run_in_executor(self._one_thread, write)

    def _remember(self, use: OfToken) -> None:
        if len(self._known) >= KEPT:
            self._known = {known for known in self._known if known[1].day >= use[1].day}
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known.add(use)

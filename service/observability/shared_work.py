"""Work that monitors ask for, on threads that other requests do not use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

Result = TypeVar("Result")


class SharedWork(Generic[Result]):
    """Does a piece of work for all requests that ask for it meanwhile, so that a crowd of them waits no longer than
    one does.
    """

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(2)
        self._running: dict[str, asyncio.Task[Result]] = {}

    async def result(self, key: str, work: Callable[[], Result]) -> Result:
        """The result of ``work``, or of the work with the same key that is being done."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._do(key, work))
        return await asyncio.shield(task)  # a client that leaves ends it for nobody

    async def _do(self, key: str, work: Callable[[], Result]) -> Result:
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            del self._running[key]

"""Workers for what takes long: several for each kind of work. Each takes a row that is due, and none waits for another.

Only the holder of the lease takes any. A worker's writes and effects are preceded by two checks: that this process
still holds the lease, and that the row is still locked by the worker's token. A lock is renewed while its work goes on,
and expires where its process has died; two that work on the same thing for a moment do no harm, since every step can be
repeated.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.orm import Session

from service.controller.context import CLAIM, ControllerContext, StaleState
from service.controller.dependencies import Unavailable
from service.controller.lease import LeaseLost
from service.db.database import DatabaseUnreachable
from service.db.tables import now
from service.jobs import work
from service.jobs.work import Claimed, Look, Work

log = structlog.get_logger()

THREADS: Final = 4
"""Rows of one kind that are worked on at a time: what hangs, or comes in thousands, holds up no other kind."""
SLICE_S: Final = 5.0
"""How long work that can go on later may keep a worker from others."""
RENEW_EVERY_S: Final = work.LOCK_S / 4
LONGEST_RETRY: Final = timedelta(seconds=60)
FILL_EVERY_S: Final = 0.5
"""Reading what is to be done takes longer the more there is: it is not done again after each piece."""


@dataclass
class Task:
    """One piece of work, as its worker sees it."""

    target: str
    cursor: str
    """How far it has come; whoever works on it sets it, and finds it again after a pause."""
    trouble: str
    """What could not be done so far, without keeping the rest from being done; empty for nothing."""
    until: float = field(default_factory=lambda: time.monotonic() + SLICE_S)

    @property
    def pauses(self) -> bool:
        """Whether it is time to return `GO_ON` and let others have the worker."""
        return time.monotonic() >= self.until


GO_ON: Final = timedelta(0)
Handler = Callable[[Task], timedelta | None]
"""Works on a task; returns the pause before it is called again with the same target, or None where all is done."""


class Queue:
    """The work of some kinds, with its own workers."""

    def __init__(
        self,
        name: str,
        context: ControllerContext,
        handlers: Mapping[Work, Handler],
        find: Callable[[Session], Mapping[Work, Collection[str]]],
        longest_pause: timedelta,
    ) -> None:
        """``find`` reads what is to be done, beside the work that others add to the table themselves. After
        ``longest_pause`` it is done again, whatever its handler or its failures would have it wait.
        """
        self.name, self._context, self._handlers, self._find = name, context, handlers, find
        self._longest_pause = longest_pause
        self.wake = threading.Event()
        self._busy: dict[str, tuple[Work, threading.Thread]] = {}
        """The kind and the thread of each token."""
        self._lock = threading.Lock()
        self._renewed_at, self._filled_at = time.monotonic(), float("-inf")

    def run(self) -> None:
        """Hand work that is due to free workers. A worker thread calls it again and again."""
        self._renew()
        if time.monotonic() - self._filled_at >= FILL_EVERY_S:
            self.fill()
            self._filled_at = time.monotonic()
        with self._lock:
            busy = Counter(kind for kind, _ in self._busy.values())
        for claimed in self._claim({kind: THREADS - busy[kind] for kind in self._handlers}, now()):
            thread = threading.Thread(target=self._run, args=(claimed,), name=f"{self.name}-worker", daemon=True)
            with self._lock:
                self._busy[claimed.token] = (claimed.kind, thread)
            thread.start()

    def run_all(self, kinds: Collection[Work] | None = None) -> None:
        """Do everything that is due now, one after the other, on the caller's thread."""
        self.fill()
        for claimed in self._claim(dict.fromkeys(kinds or self._handlers, sys.maxsize), now()):
            self._work_on(claimed)

    def stop(self, timeout_s: float) -> None:
        """Wait for the work under way, and give back what is not done, for another process to take up."""
        end = time.monotonic() + timeout_s
        with self._lock:
            threads = [thread for _, thread in self._busy.values()]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        with suppress(DatabaseUnreachable, LeaseLost):
            if tokens := self._tokens():
                log.warning("work_left_unfinished", queue=self.name, pieces=len(tokens))
                with self._context.write() as session:
                    work.release(session, tokens)

    def fill(self) -> None:
        """Add rows for what is to be done."""
        with self._context.app.database.read() as session:
            there = work.targets(session, self._handlers.keys())
            found = self._find(session)
        missing = {
            kind: [target for target in targets if (kind.value, target) not in there] for kind, targets in found.items()
        }
        if any(missing.values()):
            with self._context.write() as session:
                for kind, targets in missing.items():
                    work.add(session, kind, targets)

    def _claim(self, most: Mapping[Work, int], moment: datetime) -> list[Claimed]:
        """Lock work that is due, at most so much of each kind."""
        kinds = [kind for kind, count in most.items() if count > 0]
        look = Look(moment, self._longest_pause, self._tokens())
        with self._context.app.database.read() as session:
            if not work.due(session, kinds, 1, look):
                return []
        with self._context.write() as session:
            me = self._context.lease.me
            return [claimed for kind in kinds for claimed in work.claim(session, kind, most[kind], look, me)]

    def _tokens(self) -> list[str]:
        with self._lock:
            return list(self._busy)

    def _renew(self) -> None:
        tokens = self._tokens()
        if tokens and time.monotonic() - self._renewed_at > RENEW_EVERY_S:
            with self._context.write() as session:
                work.renew(session, tokens)
            self._renewed_at = time.monotonic()

    def _run(self, claimed: Claimed) -> None:
        try:
            self._work_on(claimed)
        finally:
            with self._lock:
                del self._busy[claimed.token]
            self.wake.set()

    def _work_on(self, claimed: Claimed) -> None:
        """Do one piece of work. Where it fails, it is done again, after longer and longer pauses."""
        reset = CLAIM.set(claimed.token)
        task = Task(claimed.target, claimed.cursor, claimed.message if claimed.cursor else "")
        try:
            with structlog.contextvars.bound_contextvars(work=claimed.kind.value, target=claimed.target):
                self._outcome(claimed, task)
        finally:
            CLAIM.reset(reset)

    def _outcome(self, claimed: Claimed, task: Task) -> None:
        try:
            pause = self._handlers[claimed.kind](task)
            with self._context.write() as session:
                if pause is None:
                    work.finish(session, claimed.token)
                else:
                    failures = claimed.failures if task.cursor else 0  # the same pass goes on
                    pause = min(pause, self._longest_pause)
                    work.postpone(session, claimed.token, pause, task.cursor, task.trouble, failures)
        except LeaseLost as error:
            log.warning("work_given_up", detail=str(error))
        except DatabaseUnreachable as error:
            log.warning("work_interrupted", detail=str(error))  # it is taken up again once its lock has expired
        except (Unavailable, StaleState) as error:
            log.debug("waits", detail=str(error))
            self._again(claimed, str(error))
        except Exception as error:  # logged with the target; it is tried again
            log.exception("work_failed")
            self._again(claimed, f"{type(error).__name__}: {error}")

    def _again(self, claimed: Claimed, why: str) -> None:
        if why != claimed.message:
            log.warning("work_postponed", detail=why)
        pause = min(LONGEST_RETRY, self._longest_pause, timedelta(seconds=2.0 ** min(claimed.failures, 10)))
        with suppress(DatabaseUnreachable, LeaseLost), self._context.write() as session:
            work.postpone(session, claimed.token, pause, "", why, claimed.failures + 1)

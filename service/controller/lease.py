"""Leader election: of all processes on one database, the holder of the lease acts on jobs.

Clocks of different hosts are never compared. The holder's beat is a rising number; a candidate that has seen it
unchanged for the lease's length, by its own clock, takes over. A holder that was suspended without noticing finds out
in `guard` before it writes.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from service.db import tables
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import now

log = structlog.get_logger()

NAME: Final = "controller"
BEATS: Final = 4
"""Beats within a lease's length."""


class LeaseLost(Exception):
    """Another process is the controller now: this one may not write."""


@dataclass(frozen=True)
class LeaseView:
    """The lease as the database stores it."""

    holder: str | None
    """None where nobody holds it."""
    beat: int
    round_at: datetime | None
    """When the controller last finished a round, by its clock."""


class Lease:
    """One process's side of the lease, as holder or candidate, with a thread of its own."""

    def __init__(
        self,
        database: Database,
        seconds: float,
        *,
        standby: bool,
        refused: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``standby``: wait while another process holds the lease; otherwise call ``refused`` with the reason, once."""
        self._database, self._seconds, self._standby = database, seconds, standby
        self._refused, self._clock = refused, clock
        self._me = f"{socket.gethostname()[:150]}/{os.getpid()}/{secrets.token_hex(4)}"
        self._healthy: Callable[[], bool] = lambda: True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._mine = False
        self._beaten_at = 0.0
        """When the write of the last beat began."""
        self._last_seen: tuple[str | None, int] | None = None
        self._last_seen_at = 0.0
        """When the present beat of another holder was first seen."""
        self._round_at: datetime | None = None
        self._trouble: str | None = None
        """The log event of a problem that persists, so that it is logged once."""
        self.refusal: str | None = None
        """Why this process will never be the controller."""

    def start(self, healthy: Callable[[], bool]) -> None:
        """Take part. No beat is written while ``healthy`` returns false, so that another process takes over."""
        self._healthy = healthy
        self._thread.start()

    @property
    def me(self) -> str:
        """This process, as the lease names it."""
        return self._me

    def held(self) -> bool:
        """Whether this process is the controller, as far as it knows without reading the database."""
        return self._mine and self._clock() - self._beaten_at < self._seconds

    def guard(self, session: Session) -> None:
        """Call this first in each writing transaction of the controller; raises `LeaseLost`.

        Transactions that write are serialised: the answer holds until the transaction ends.
        """
        if session.scalar(select(tables.Lease.holder).where(tables.Lease.name == NAME)) != self._me:
            self._mine = False
            raise LeaseLost("another process is the controller now")

    def finished_round(self) -> None:
        """Record that the loop has finished a round; written with the next beat."""
        self._round_at = now()

    def release(self) -> None:
        """Give the lease back, so that the next process need not wait. Call it once the loop has ended."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        if not self._mine:
            return
        self._mine = False
        mine = update(tables.Lease).where(tables.Lease.name == NAME, tables.Lease.holder == self._me)
        try:
            with self._database.session() as session:
                session.execute(mine.values(holder=None))
        except DatabaseUnreachable as error:
            log.warning("lease_not_given_back", error=str(error))
        else:
            log.info("lease_given_back", holder=self._me)

    def _run(self) -> None:
        while not self._ended.is_set() and self.refusal is None:
            try:
                self.tick()
            except DatabaseUnreachable as error:
                self._warn_once("lease_unreachable", str(error))
            except Exception:  # without this thread no process would act on jobs
                log.exception("lease_failed")
            self._ended.wait(self._seconds / BEATS)

    def tick(self) -> None:
        """Write a beat, or watch the holder's, once. The thread calls it; raises `DatabaseUnreachable`."""
        if self._mine:
            self._beat()
        else:
            self._watch()

    def _warn_once(self, trouble: str, detail: str) -> None:
        if self._trouble != trouble:
            log.warning(trouble, holder=self._me, detail=detail)
        self._trouble = trouble

    def _beat(self) -> None:
        if not self._healthy():
            self._warn_once("lease_not_kept", "the loop is stuck: another process may take over")
            return
        values: dict[str, object] = {"beat": tables.Lease.beat + 1}
        if self._round_at:
            values["round_at"] = self._round_at
        if not self._write(values, tables.Lease.holder == self._me):
            self._mine = False
            self._warn_once("lease_lost", "another process is the controller now")

    def _watch(self) -> None:
        begin = self._clock()
        with self._database.read() as session:
            found = view(session)
        if found is None:
            self._make()
            return
        still = self._last_seen == (found.holder, found.beat)
        if found.holder is None or (still and begin - self._last_seen_at >= self._seconds):
            self._take(found)
        elif not still:
            if self._last_seen and not self._standby:
                self._refuse(found.holder)
            self._last_seen, self._last_seen_at = (found.holder, found.beat), self._clock()

    def _make(self) -> None:
        """Create the row in a new database."""
        with self._database.session() as session:
            if session.get(tables.Lease, NAME) is None:
                session.add(tables.Lease(name=NAME))
        self._watch()

    def _take(self, found: LeaseView) -> None:
        values = {"holder": self._me, "beat": found.beat + 1}
        as_seen = (tables.Lease.holder.is_not_distinct_from(found.holder), tables.Lease.beat == found.beat)
        if self._healthy() and self._write(values, *as_seen):
            log.info("lease_taken", holder=self._me, before=found.holder)

    def _write(self, values: dict[str, object], *where: ColumnElement[bool]) -> bool:
        """Change the row if it matches ``where``: the lease is ours from then on."""
        begin = self._clock()
        change = update(tables.Lease).where(tables.Lease.name == NAME, *where).values(values | {"beat_at": now()})
        with self._database.session() as session:
            done: bool = session.execute(change).rowcount == 1  # type: ignore[attr-defined]  # an UPDATE's has it
        if done:
            self._beaten_at, self._mine, self._last_seen, self._trouble = begin, True, None, None
        return done

    def _refuse(self, holder: str) -> None:
        self.refusal = (
            f"{named(holder)} is the controller of {self._database.masked_url}, and SQLite allows one: end that "
            "process, or set RCMAE_RECONCILE=false for this one; with Postgres (RCMAE_DATABASE_URL) any number stand by"
        )
        log.error("controller_refused", detail=self.refusal)
        self._refused(self.refusal)


def view(session: Session) -> LeaseView | None:
    """The lease as it is now; None before any process took part."""
    row = session.get(tables.Lease, NAME)
    return LeaseView(row.holder, row.beat, row.round_at) if row else None


def named(holder: str) -> str:
    """A holder, in words."""
    host, pid, _ = holder.split("/")
    return f"process {pid} on {host}"

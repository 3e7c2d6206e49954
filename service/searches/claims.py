"""The right to add trials to a search, which one request at a time has.

Trials are in the studies' database, which knows neither the room in the budget nor idempotency keys: whoever adds some
reads the study first. So that nobody adds others in between, a row in our own database holds the search meanwhile. It
expires if its process dies, and is renewed while the request adds trials.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.tables import SearchClaim, now
from service.http.problems import ApiProblem

EXPIRES_AFTER: Final = timedelta(seconds=60)
"""Longer than any single statement in the studies' database may take."""
RENEWED_AFTER: Final = timedelta(seconds=5)
WAIT_S: Final = 10.0
"""How long a request waits for its turn."""
POLL_S: Final = 0.05


@dataclass
class Claim:
    """A search held by this request."""

    database: Database
    search_id: str
    token: str
    renewed_at: datetime

    def renew(self) -> None:
        """Hold the search for longer, before each step that changes the study.

        Raises the API's 503 where it took so long that another request may have the search by now.
        """
        if now() - self.renewed_at < RENEWED_AFTER:
            return
        with self.database.session() as session:
            moment = now()
            self.must_hold(session).expires_at = moment + EXPIRES_AFTER
        self.renewed_at = moment

    def must_hold(self, session: Session) -> SearchClaim:
        """The row, which stays this request's until the transaction ends; raises the API's 503 as `renew` does."""
        row = session.get(SearchClaim, self.search_id)
        if row is None or row.token != self.token:
            text = f"adding trials to {self.search_id} was interrupted for too long. Repeat the request"
            raise ApiProblem(503, "unavailable", text)
        return row


@contextmanager
def claimed(database: Database, search_id: str) -> Iterator[Claim]:
    """Hold a search, waiting for other requests that add trials to it; raises the API's 503 if they take too long."""
    token, end = secrets.token_hex(16), time.monotonic() + WAIT_S
    while not (claim := _claim(database, search_id, token)):
        if time.monotonic() > end:
            text = f"another request is adding trials to {search_id}. Try again shortly"
            raise ApiProblem(503, "unavailable", text, headers={"Retry-After": "5"})
        time.sleep(POLL_S)
    try:
        yield claim
    finally:
        with database.session() as session:
            row = session.get(SearchClaim, search_id)
            if row is not None and row.token == token:
                session.delete(row)


def _claim(database: Database, search_id: str, token: str) -> Claim | None:
    """The claim; None while another request has it. The search must exist."""
    with database.read() as session:  # waits for no writer
        if _held(session.get(SearchClaim, search_id)):
            return None
    with database.session() as session:
        row = session.get(SearchClaim, search_id)
        if _held(row):
            return None
        moment = now()
        session.merge(SearchClaim(search_id=search_id, token=token, expires_at=moment + EXPIRES_AFTER))
    return Claim(database, search_id, token, moment)


def _held(row: SearchClaim | None) -> bool:
    return row is not None and row.expires_at > now()

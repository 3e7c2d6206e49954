"""What the controller's modules share: its adapters, its guarded transactions, and the isolation of failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy.orm import Session

from service.adapters.storage import OutsideRoot
from service.context.app_state import AppState
from service.controller.dependencies import Dependencies, Unavailable
from service.controller.fence import fenced
from service.controller.kind import ControllerKinds
from service.controller.lease import Lease, LeaseLost
from service.db.database import DatabaseUnreachable
from service.db.tables import Job
from service.jobs import work
from service.jobs.lifecycle import explain
from service.jobs.state import State
from trainer.protocol.outcome import Reason

log = structlog.get_logger()

ACTOR: Final = "controller"
CLAIM: Final[ContextVar[str | None]] = ContextVar("claim", default=None)
"""The token of the work that this thread does; None in the loop."""


class StaleState(Exception):
    """The job is no longer in the state that the controller acted on; the next round observes it anew."""


@dataclass(frozen=True)
class ControllerContext:
    """The controller's adapters and lease. No database session may be open during a call to a dependency.

    Every effect of the adapters in ``app`` is fenced: it raises `LeaseLost` where this process may no longer have it.
    """

    app: AppState
    kinds: ControllerKinds
    lease: Lease
    dependencies: Dependencies = field(default_factory=Dependencies)
    opening_runs: threading.Lock = field(default_factory=threading.Lock)
    """Held while a job's run is opened for an attempt, and while a sweep decides whether to end a run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "app", fenced(self.app, self.check))

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes; raises `LeaseLost` where another process is the controller now, or another worker
        has taken over this one's work.
        """
        with self.app.database.session() as session:
            self._guard(session)
            yield session

    def check(self) -> None:
        """Raises `LeaseLost` in the same cases. Every effect outside of the database is preceded by it."""
        with self.app.database.read() as session:
            self._guard(session)

    def _guard(self, session: Session) -> None:
        self.lease.guard(session)
        token = CLAIM.get()
        if token and not work.is_locked(session, token):
            raise LeaseLost("another worker has taken over this work")

    def set_message(self, loaded: Job, message: str, reason: Reason | None = None) -> None:
        """Say what a job waits for, unless its state has changed since it was loaded.

        ``reason`` applies to queued jobs; jobs in other states keep theirs.
        """
        if loaded.message == message and (loaded.reason == reason or loaded.state != State.QUEUED):
            return
        with self.write() as session:
            job = session.get(Job, loaded.id)
            if job and job.state == loaded.state:
                explain(job, reason if job.state == State.QUEUED else job.reason, message)

    @contextmanager
    def explain_waiting(self, job: Job, prefix: str) -> Iterator[None]:
        """Where a dependency is unavailable, say so in the job's message, after ``prefix``; raises `Unavailable`."""
        try:
            yield
        except Unavailable as error:
            self.set_message(job, f"{prefix} {error}.")
            raise

    def delete_files(self, job_id: str, folder: str) -> None:
        """Delete an artifact folder, unless it lies outside the artifact root: then it is not ours."""
        try:
            with self.dependencies.storage.call():
                self.app.artifacts.delete(folder)
        except OutsideRoot as error:
            log.warning("files_left", job_id=job_id, detail=str(error))


def logged_as(job: Job) -> AbstractContextManager[None]:
    """Adds a job's ids to the log lines of the block."""
    ids = {"job_id": job.id, "attempt": job.attempts, "request_id": job.request_id}
    return structlog.contextvars.bound_contextvars(**{name: value for name, value in ids.items() if value})


@contextmanager
def isolated_job(job: Job) -> Iterator[None]:
    """Keep the failure of one job from affecting others, and add the job's ids to the log lines of the block.

    Only `DatabaseUnreachable` and `LeaseLost` pass through.
    """
    with logged_as(job):
        try:
            yield
        except StaleState as error:
            log.info("moved_by_another", detail=str(error))
        except Unavailable as error:
            log.debug("waits", detail=str(error))
        except (DatabaseUnreachable, LeaseLost):
            raise
        except Exception:  # logged with the ids; the next round tries again
            log.exception("job_failed_to_advance")

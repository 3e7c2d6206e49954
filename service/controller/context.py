"""What the controller's modules share: its adapters, its guarded transactions, and the isolation of failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy.orm import Session

from service.adapters.storage import OutsideRoot
from service.context.app_state import AppState
from service.controller.dependencies import Dependencies, Unavailable
from service.controller.kind import ControllerKinds
from service.controller.lease import Lease, LeaseLost
from service.db.database import DatabaseUnreachable
from service.db.tables import Job
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.state import State
from trainer.protocol.outcome import Reason

log = structlog.get_logger()

ACTOR: Final = "controller"


class StaleState(Exception):
    """The job is no longer in the state that the controller acted on; the next round observes it anew."""


@dataclass(frozen=True)
class ControllerContext:
    """The controller's adapters and lease. No database session may be open during a call to a dependency."""

    app: AppState
    kinds: ControllerKinds
    lease: Lease
    dependencies: Dependencies = field(default_factory=Dependencies)
    opening_runs: threading.Lock = field(default_factory=threading.Lock)
    """Held while a job's run is opened for an attempt, and while a sweep decides whether to end a run."""

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes; raises `LeaseLost` where another process is the controller now."""
        with self.app.database.session() as session:
            self.lease.guard(session)
            yield session

    def set_message(self, loaded: Job, message: str, reason: Reason | None = None) -> None:
        """Set a job's message, unless its state has changed since it was loaded.

        ``reason`` applies to queued jobs; jobs in other states keep theirs.
        """
        with self.write() as session:
            job = repository.get(session, loaded.id)
            if job.state == loaded.state:
                note(session, job, reason if job.state == State.QUEUED else job.reason, message, ACTOR)

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


@contextmanager
def isolated_job(job: Job) -> Iterator[None]:
    """Keep the failure of one job from affecting others, and add the job's ids to the log lines of the block.

    Only `DatabaseUnreachable` and `LeaseLost` pass through.
    """
    with isolated(job_id=job.id, attempt=job.attempts, request_id=job.request_id):
        yield


@contextmanager
def isolated(**ids: object) -> Iterator[None]:
    """The same for something other than a job, with these ids."""
    with structlog.contextvars.bound_contextvars(**{name: value for name, value in ids.items() if value}):
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

"""What the controller's modules share: all it acts with, its right to write, one job's trouble kept apart."""

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
from service.controller.dependencies import Away, Dependencies
from service.controller.kind import ControllerKinds
from service.controller.lease import Lease, LeaseLost
from service.db.database import DatabaseUnreachable
from service.db.tables import Job
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.schemas import State
from trainer.protocol.outcome import Reason

log = structlog.get_logger()

ACTOR: Final = "controller"


class StaleState(Exception):
    """The job is no longer in the state that the controller acted on; the next round looks again."""


@dataclass(frozen=True)
class ControllerContext:
    """What the controller acts with. No database session may be open while anything else is asked."""

    app: AppState
    kinds: ControllerKinds
    lease: Lease
    needs: Dependencies = field(default_factory=Dependencies)
    opening_runs: threading.Lock = field(default_factory=threading.Lock)
    """Held while a job's run is opened for an attempt, and while a sweep decides that a run is to be ended."""

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction of the controller's; raises `LeaseLost` where another process is the controller now."""
        with self.app.database.session() as session:
            self.lease.guard(session)
            yield session

    def say(self, loaded: Job, message: str, reason: Reason | None = None) -> None:
        """Say why a job gets on no further, as long as it is in the state it was loaded in.

        The reason is that of a queued job; what other jobs wait after keeps its own.
        """
        with self.write() as session:
            job = repository.get(session, loaded.id)
            if job.state == loaded.state:
                note(session, job, reason if job.state == State.QUEUED else job.reason, message, ACTOR)

    @contextmanager
    def explained(self, job: Job, what: str) -> Iterator[None]:
        """Say so in a job's message where a dependency is out of reach meanwhile; raises `Away` all the same."""
        try:
            yield
        except Away as error:
            self.say(job, f"{what} {error}.")
            raise

    def delete_files(self, job_id: str, folder: str) -> None:
        """Delete an artifact folder; one outside the artifact root is not ours, and is left."""
        try:
            with self.needs.storage.asked():
                self.app.artifacts.delete(folder)
        except OutsideRoot as error:
            log.warning("files_left", job_id=job_id, detail=str(error))


@contextmanager
def guarded(job: Job) -> Iterator[None]:
    """One job's trouble must not stop the others: only a database out of reach and a lost lease do.

    What is logged meanwhile carries the job's ids.
    """
    with kept_apart(job_id=job.id, attempt=job.attempts, request_id=job.request_id):
        yield


@contextmanager
def kept_apart(**ids: object) -> Iterator[None]:
    """The same for whatever has these ids."""
    with structlog.contextvars.bound_contextvars(**{name: value for name, value in ids.items() if value}):
        try:
            yield
        except StaleState as error:
            log.info("moved_by_another", detail=str(error))
        except Away as error:
            log.debug("waits", detail=str(error))
        except (DatabaseUnreachable, LeaseLost):
            raise
        except Exception:  # logged with its ids; the next round tries again
            log.exception("job_failed_to_advance")

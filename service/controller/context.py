"""What the parts of the controller share: everything it talks to, its right to write, one job's trouble kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.controller.dependencies import Away, Dependencies
from service.controller.lease import Lease, LeaseLost
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Job
from service.settings import Settings

log = structlog.get_logger()

ACTOR: Final = "controller"


class StaleState(Exception):
    """The job is no longer in the state that the controller acted on; the next round looks again."""


@dataclass(frozen=True)
class Control:
    """A controller's means. No database session may be open while one of the others is asked."""

    settings: Settings
    database: Database
    ray: RayCluster
    mlflow: MlflowStore
    artifacts: Artifacts
    studies: Studies
    lease: Lease
    needs: Dependencies = field(default_factory=Dependencies)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction of the controller's; raises `LeaseLost` where another process is the controller now."""
        with self.database.session() as session:
            self.lease.guard(session)
            yield session


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

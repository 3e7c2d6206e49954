"""The interface that the controller uses for a kind of job."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.context.kind import JobKind, Spec
from service.db.tables import Attempt, Job
from service.jobs.schemas import Result
from service.jobs.state import State
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.protocol.request import Source, VersionSource

if TYPE_CHECKING:
    from service.controller.context import ControllerContext
    from service.controller.queue import Task


class CannotStart(Exception):
    """The job can no longer do what it was submitted for; the message says why."""

    def __init__(self, message: str, reason: Reason = Reason.DATA_ERROR) -> None:
        super().__init__(message)
        self.reason = reason


class NoResult(Exception):
    """An attempt has succeeded by its own account, and its result is not there; the message says what is wrong."""


class Reads(NamedTuple):
    """What an attempt reads of other jobs, for its request."""

    source: Source | VersionSource | None = None
    """The job whose checkpoint it reads, or the version."""
    reference_uri: str | None = None
    """The artifact folder of the evaluation that its results are relative to."""


NOTHING: Final = Reads()


class ProgressReport(Protocol):
    """A job's progress and result. It is read before a transaction opens and recorded inside one."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        """Write the progress into the job's row."""

    def summary(self) -> str:
        """The message of a job that has succeeded."""

    def result(self) -> Result:
        """The result of a job that has succeeded."""

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Further writes of the transaction in which the job moves to another state after its last attempt."""


class ControllerKind(JobKind[Spec]):
    """A kind of job, with the hooks for its attempts."""

    # --- starting an attempt ----------------------------------------------------------------------------------------

    def prepare(self, context: ControllerContext, job: Job, spec: Spec) -> None:
        """Create what an attempt needs besides its run; raises `Unavailable`."""

    def run_tags(self, spec: Spec) -> Mapping[str, str]:  # noqa: ARG002
        """Tags for the job's MLflow run besides those of every run."""
        return {}

    def write_orders(self, context: ControllerContext, run_id: str, job: Job, spec: Spec) -> None:
        """Write orders into the run for the attempt to read. The caller wraps it in a call to MLflow."""

    def reads(self, session: Session, spec: Spec) -> Reads:  # noqa: ARG002
        """What the attempt reads of other jobs; raises `CannotStart`."""
        return NOTHING

    # --- while it runs ----------------------------------------------------------------------------------------------

    @abstractmethod
    def running_message(self, job: Job, attempt: Attempt) -> str:
        """A sentence on what a running attempt does. It must not change with progress."""

    def update_orders(self, context: ControllerContext, job: Job, run: RunView | None) -> bool:  # noqa: ARG002
        """Pass changed orders on to a running job; returns False where it does not know them yet."""
        return True

    @abstractmethod
    def report(self, context: ControllerContext, job: Job, run: RunView | None) -> ProgressReport | None:
        """The progress of a job, as far as its run tells it; None where it cannot be read now. The loop calls this."""

    def report_trials(self, context: ControllerContext, job: Job) -> ProgressReport | None:  # noqa: ARG002
        """The progress of a job with trials; None where it cannot be read now. A worker calls this now and then."""
        return None

    # --- at its end -------------------------------------------------------------------------------------------------

    @abstractmethod
    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> ProgressReport:
        """The final progress of a job that moves to ``state`` after its last attempt.

        Raises `Unavailable`, and `NoResult` where a job cannot succeed because its result is not there. It is repeated
        after an interruption.
        """

    def settle_ended(self, context: ControllerContext, job: Job) -> None:
        """Settle a job that a request ended while no attempt ran; raises `Unavailable`. It may be repeated."""

    # --- removal and sweeps -----------------------------------------------------------------------------------------

    def remove(self, context: ControllerContext, job: Job, task: Task) -> bool:  # noqa: ARG002
        """Remove what a deleted job left besides versions, files, run and Ray's records. It may be repeated.

        Returns False where it is not done when the task pauses; it is then called again. Raises `Unavailable`.
        """
        return True

    def checkpoint_folders(self, context: ControllerContext, job: Job, attempt: Attempt) -> Sequence[str]:  # noqa: ARG002
        """The folders in which an ended attempt stored checkpoints."""
        return [f"{job.artifact_uri}/{names.checkpoint_folder(attempt.number)}"]


ControllerKinds = Mapping[str, ControllerKind[Any]]
"""All kinds, by name."""

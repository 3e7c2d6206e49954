"""What the controller asks of a kind of job."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import RunView
from service.context.kind import JobKind, Spec
from service.db.tables import Attempt, Job
from service.jobs.schemas import Result, State
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.protocol.request import Source

if TYPE_CHECKING:
    from service.controller.context import ControllerContext


class CannotStart(Exception):
    """The job can no longer do what it was submitted for; the text says why."""

    def __init__(self, message: str, reason: Reason = Reason.DATA_ERROR) -> None:
        super().__init__(message)
        self.reason = reason


class Standing(Protocol):
    """How far a job has come. It is read before a transaction opens and recorded inside one."""

    def record(self, job: Job, attempts: Sequence[Attempt], moment: datetime) -> None:
        """Write the progress into the job's row."""

    def summary(self) -> str:
        """What a job that has succeeded says."""

    def result(self) -> Result:
        """What a job that has succeeded leaves behind."""

    def succeeded(self, session: Session, context: ControllerContext, job: Job) -> None:
        """What else happens in the transaction in which the job succeeds."""


class ControllerKind(JobKind[Spec]):
    """A kind of job, with what its attempts need."""

    goes_on: ClassVar[str] = "from the last checkpoint"
    """How a cancelled job continues once it is retried."""

    # --- starting an attempt ----------------------------------------------------------------------------------------

    def prepare(self, context: ControllerContext, job: Job, spec: Spec) -> None:
        """Make what an attempt needs besides its run; raises `Away`."""

    def run_tags(self, spec: Spec) -> Mapping[str, str]:  # noqa: ARG002
        """Tags of the job's MLflow run besides those that every run has."""
        return {}

    def order(self, context: ControllerContext, run_id: str, job: Job, spec: Spec) -> None:
        """Write orders into the run before the attempt reads them. The caller has MLflow's leave to ask it."""

    def source(self, session: Session, spec: Spec) -> Source | None:  # noqa: ARG002
        """The other job whose checkpoint the attempt reads; raises `CannotStart`."""
        return None

    # --- while it runs ----------------------------------------------------------------------------------------------

    @abstractmethod
    def working(self, job: Job, attempt: Attempt) -> str:
        """What a running attempt does, in a sentence that stays the same while it gets on."""

    def direct(self, context: ControllerContext, job: Job, run: RunView | None) -> None:
        """Pass on what people have asked of a running job."""

    @abstractmethod
    def observe(self, context: ControllerContext, job: Job, run: RunView | None) -> Standing | None:
        """How far a job is; None where nothing is known of it now."""

    # --- at its end -------------------------------------------------------------------------------------------------

    @abstractmethod
    def settle(self, context: ControllerContext, job: Job, run: RunView | None, state: State) -> Standing:
        """How far a job has come that moves to ``state`` as no attempt runs any more; raises `Away`.

        Interrupted, it is done again.
        """

    def finish(self, context: ControllerContext) -> None:
        """Settle jobs that people have ended while no attempt ran; once a round."""

    # --- removal and sweeps -----------------------------------------------------------------------------------------

    def remove(self, context: ControllerContext, job: Job) -> None:
        """Remove what a deleted job left besides versions, files, run and Ray's records; repeatable."""

    def checkpoint_folders(self, context: ControllerContext, job: Job, attempt: Attempt) -> Sequence[str]:  # noqa: ARG002
        """The folders in which an ended attempt stored checkpoints."""
        return [f"{job.artifact_uri}/{names.checkpoint_folder(attempt.number)}"]


ControllerKinds = Mapping[str, ControllerKind[Any]]
"""All kinds, by name."""

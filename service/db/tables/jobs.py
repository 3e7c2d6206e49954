"""Tables of jobs, their attempts and events, and of searches."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    delete,
    event,
    false,
    insert,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables.base import Base, now

COUNTED = text("dataset_images IS NOT NULL")
DELETED = text("deleted_at IS NOT NULL")
UNSWEPT = text("swept_at IS NULL")


class Job(Base):
    """A job of any kind."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        # Lists, newest first: all jobs, those in one state, one owner's, or those of one owner in one state. Names are
        # searched in the first index.
        Index(None, "created_at", "id", "deleted_at", "name"),
        Index(None, "state", "created_at", "id"),
        Index(None, "owner", "created_at", "id"),
        Index(None, "owner", "state", "created_at", "id"),
        Index(None, "state", "kind", "deleted_at", "waiting_since"),
        # The size of a dataset, which every submission looks up.
        Index(None, "dataset_uri", "created_at", sqlite_where=COUNTED, postgresql_where=COUNTED),
        Index(None, "search_id", "trial"),
        Index(None, "follows", unique=True),
        # What was deleted and is to be removed; jobs that wait or run are found by their state.
        Index("ix_job_deleted", "deleted_at", sqlite_where=DELETED, postgresql_where=DELETED),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    revision: Mapped[int] = mapped_column(server_default="1")
    """Rises with every change of the row, but for the control loop's word on why a job waits."""
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text, default="")
    owner: Mapped[str] = mapped_column(String(100))
    priority: Mapped[int]
    labels: Mapped[dict[str, str]]
    spec: Mapped[dict[str, Any]]
    """The submitted spec, with defaults filled in."""
    resolved_spec: Mapped[dict[str, Any] | None]
    """The spec with every `auto` replaced by what the cluster allows; None until an attempt is admitted."""
    notes: Mapped[str] = mapped_column(Text, default="")
    dataset_uri: Mapped[str] = mapped_column(Text)
    dataset_images: Mapped[int | None]
    """Number of readable images; None until an attempt has counted them."""
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    """The newest value of each metric, as last read from the run."""
    run_id: Mapped[str | None] = mapped_column(String(64))
    artifact_uri: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(String(64))
    """Id of the request that submitted it, in the logs of the API, the controller, the driver and all ranks."""
    attempts: Mapped[int] = mapped_column(default=0)
    since_attempt: Mapped[int] = mapped_column(default=1)
    """Training resumes only from checkpoints of this attempt or later ones."""
    failures: Mapped[int] = mapped_column(default=0)
    """Failures charged to the spec's `retry.max_failures`."""
    restarts: Mapped[int] = mapped_column(default=0)
    """Consecutive restarts, charged or not; they determine the back-off."""
    not_before: Mapped[datetime | None]
    """Earliest start of the next attempt."""
    waiting_since: Mapped[datetime] = mapped_column(default=now)
    """When it last began to wait for an attempt."""
    deleted_at: Mapped[datetime | None]
    """When somebody deleted it. It is hidden from then on, while the controller removes its files and runs."""
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    body_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    draining: Mapped[bool] = mapped_column(default=False, server_default=false())
    """For a search: whether it was told to start no more trials."""
    stopped_trials: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    """For a search: the numbers of trials that somebody stopped."""
    search_id: Mapped[str | None] = mapped_column(String(32))
    """For a job promoted from a trial: the search."""
    trial: Mapped[int | None]
    """For a job promoted from a trial: the trial's number."""
    follows: Mapped[str | None] = mapped_column(String(32))
    """For an evaluation that the service submitted by itself: the job whose spec asked for it. One follows each job."""

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012 - the base class declares it without ClassVar

    @property
    def run_spec(self) -> dict[str, Any]:
        """The spec that an attempt runs: the resolved one if there is one, otherwise the submitted one."""
        return self.resolved_spec or self.spec


class Label(Base):
    """One label of a job. It duplicates `Job.labels`, so that an index finds jobs by label, newest first."""

    __tablename__ = "label"
    __table_args__ = (Index(None, "name", "value", "created_at", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(63))
    created_at: Mapped[datetime]
    """The job's `created_at`."""


def write_labels(connection: Connection, job: Job) -> None:
    """Make a job's rows in the label table match `Job.labels`."""
    connection.execute(delete(Label).where(Label.job_id == job.id))
    rows = [
        {"job_id": job.id, "name": name, "value": value, "created_at": job.created_at}
        for name, value in job.labels.items()
    ]
    if rows:
        connection.execute(insert(Label), rows)


@event.listens_for(Job, "after_insert")
def _write_labels_of_new_job(_: object, connection: Connection, job: Job) -> None:
    write_labels(connection, job)


class Attempt(Base):
    """One attempt at running a job, which is one Ray job."""

    __tablename__ = "attempt"
    __table_args__ = (
        # What sweeps look for.
        Index("ix_attempt_unswept", "ended_at", sqlite_where=UNSWEPT, postgresql_where=UNSWEPT),
        Index(None, "submission_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    submission_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text, default="")
    accepted: Mapped[bool] = mapped_column(default=False)
    """Whether Ray is known to have accepted the submission."""
    generation: Mapped[int] = mapped_column(default=0)
    """Number of commands sent to it."""
    command: Mapped[str | None] = mapped_column(String(16))
    """The action of the last command; None if MLflow, which carries commands, did not accept it."""
    commanded_at: Mapped[datetime | None]
    """When the command was sent, or was first due."""
    stop_asked_at: Mapped[datetime | None]
    """When Ray was asked to stop it."""
    heartbeat: Mapped[float | None]
    """The newest heartbeat, in seconds since 1970 by the worker's clock."""
    heartbeat_at: Mapped[datetime | None]
    """When that heartbeat was first read, by the controller's clock."""
    workers: Mapped[int | None]
    gpus: Mapped[int | None]
    """GPUs of all workers together."""
    checkpoint: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]
    """When its unfinished checkpoints were removed."""


class Event(Base):
    """An event in a job's life. It is never changed, or deleted while the job exists."""

    __tablename__ = "event"
    __table_args__ = (Index(None, "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    time: Mapped[datetime] = mapped_column(default=now)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(String(100))


class Addition(Base):
    """A request that added trials to a search, by its idempotency key."""

    __tablename__ = "addition"

    search_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    """The caller."""
    idempotency_key: Mapped[str] = mapped_column(String(200), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    numbers: Mapped[list[int]] = mapped_column(JSON(none_as_null=True))
    """The numbers of the trials."""


class SearchClaim(Base):
    """A search to which a request is adding trials; no other request may until then."""

    __tablename__ = "search_claim"

    search_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    """The request's."""
    expires_at: Mapped[datetime]
    """When others may take the search over: the request renews it as long as it lives."""

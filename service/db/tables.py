"""The tables of the control plane's database."""

from __future__ import annotations

import secrets
import unicodedata
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    delete,
    event,
    false,
    insert,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def now() -> datetime:
    return datetime.now(UTC)


class UtcTime(TypeDecorator[datetime]):
    """Moments in UTC, stored without a time zone, which is added again on reading."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value.replace(tzinfo=UTC) if value else None


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime(),
        dict[str, Any]: JSON(none_as_null=True),
        dict[str, str]: JSON(none_as_null=True),
    }


COUNTED = text("dataset_images IS NOT NULL")
DELETED = text("deleted_at IS NOT NULL")
UNSWEPT = text("swept_at IS NULL")
WAITS = text("next_attempt_at IS NOT NULL")


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


class RegisteredBackbone(Base):
    """What all versions of a backbone have in common. The row is there as long as one of them is shown."""

    __tablename__ = "backbone"

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    """Whoever registered its first version, or was given it later."""
    description: Mapped[str | None] = mapped_column(Text)
    """None until somebody has described it here or in MLflow; empty if somebody has removed the description."""
    labels: Mapped[dict[str, str]] = mapped_column(default=dict, server_default="{}")
    search_text: Mapped[str] = mapped_column(Text, server_default="")
    """Its description and labels, for searches; see `folded`."""
    created_at: Mapped[datetime]
    """When its first version was registered."""


class BackboneVersion(Base):
    """A registered version of a backbone. MLflow has it too, and gave it its number."""

    __tablename__ = "backbone_version"
    __table_args__ = (Index(None, "job_id"), Index(None, "state", "deleted_at"))

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    """A `service.jobs.versions.VersionState`."""
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    """The job that registered it."""
    owner: Mapped[str] = mapped_column(String(100))
    """That job's owner."""
    trained_by: Mapped[str] = mapped_column(String(32))
    """The job that pretrained it."""
    dataset_uri: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    """Its source in MLflow, which tells it from another version that has the same number."""
    folder: Mapped[str | None] = mapped_column(Text)
    """The folder of its files; None if MLflow has no logged model for it."""
    tags: Mapped[dict[str, str]]
    """Its tags in MLflow, but for the copies of its labels."""
    description: Mapped[str | None] = mapped_column(Text)
    """As `RegisteredBackbone.description`; at first the notes of its job."""
    labels: Mapped[dict[str, str]] = mapped_column(default=dict, server_default="{}")
    """At first those of its job."""
    search_text: Mapped[str] = mapped_column(Text, server_default="")
    """Its name, dataset, description and labels, for searches; see `folded`."""
    created_at: Mapped[datetime]
    """When it was registered."""
    deleted_at: Mapped[datetime | None]
    """When somebody deleted it here."""


def folded(text: str) -> str:
    """A text as searches compare it: neither case nor the encoding of accents matters, in either kind of database."""
    return unicodedata.normalize("NFC", text).casefold()


@event.listens_for(RegisteredBackbone, "before_insert")
@event.listens_for(RegisteredBackbone, "before_update")
def _write_backbone_text(_: object, __: Connection, row: RegisteredBackbone) -> None:
    row.search_text = _search_text(row)


@event.listens_for(BackboneVersion, "before_insert")
@event.listens_for(BackboneVersion, "before_update")
def _write_version_text(_: object, __: Connection, row: BackboneVersion) -> None:
    row.search_text = folded(f"{row.name}\n{row.dataset_uri}\n") + _search_text(row)


def _search_text(row: RegisteredBackbone | BackboneVersion) -> str:
    labels = (f"{name}:{value}" for name, value in (row.labels or {}).items())
    return folded("\n".join([row.description or "", *labels]))


class BackboneAlias(Base):
    """A name for a version of a backbone. MLflow has a copy."""

    __tablename__ = "backbone_alias"
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["backbone_version.name", "backbone_version.version"], ondelete="CASCADE"
        ),
    )

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    alias: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int]


class SigningKey(Base):
    """A public key of the deployment. It stays after the service signs with another one, for what it has signed."""

    __tablename__ = "signing_key"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The first 16 hexadecimal digits of the sha256 of the key in DER."""
    public_key: Mapped[str] = mapped_column(Text)
    """In PEM."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    """When the service first had it."""


class VersionSignature(Base):
    """The signature over a version's checksums. It stays as it is, whatever happens to the files."""

    __tablename__ = "version_signature"
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["backbone_version.name", "backbone_version.version"], ondelete="CASCADE"
        ),
    )

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_key.id"))
    signature: Mapped[str] = mapped_column(String(88))
    """The 64 bytes of Ed25519 in base64."""
    sums_sha256: Mapped[str] = mapped_column(String(64))
    """Of the checksum file that was signed."""
    signed_at: Mapped[datetime] = mapped_column(default=now)


class RegistryCheck(Base):
    """When the rows of versions were last compared with MLflow. There is no row until all versions have been read."""

    __tablename__ = "registry_check"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    checked_at: Mapped[datetime] = mapped_column(default=now)


class WorkItem(Base):
    """Something that takes long, for a worker of the controller to do. The row goes once it is done."""

    __tablename__ = "work_item"
    __table_args__ = (Index(None, "kind", "due_at"), Index(None, "lock_token"))

    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    target: Mapped[str] = mapped_column(String(300), primary_key=True)
    """What is to be worked on, such as a job's id."""
    due_at: Mapped[datetime] = mapped_column(default=now)
    """The earliest time to begin, or to go on."""
    cursor: Mapped[str | None] = mapped_column(Text)
    """How far it has come."""
    message: Mapped[str] = mapped_column(Text, default="")
    """What went wrong so far."""
    failures: Mapped[int] = mapped_column(default=0)
    """Consecutive failures; they determine the back-off."""
    lock_token: Mapped[str | None] = mapped_column(String(32))
    """Known to the worker that works on it, and checked by each of its writes; None where nobody does."""
    locked_by: Mapped[str | None] = mapped_column(String(200))
    """The worker's process, for people."""
    lock_expires_at: Mapped[datetime | None]


class Webhook(Base):
    """A receiver of events."""

    __tablename__ = "webhook"
    __table_args__ = (Index(None, "owner", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=lambda: f"hook-{secrets.token_hex(7)}")
    owner: Mapped[str] = mapped_column(String(100))
    url: Mapped[str] = mapped_column(Text)
    events: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Types of `service.events.types`; None for all, those of later releases included."""
    backbones: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """The backbones whose events it gets; None for all events."""
    description: Mapped[str] = mapped_column(Text, default="")
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_because: Mapped[str] = mapped_column(Text, default="")
    """Why the service has disabled it; empty if it has not."""
    secret: Mapped[str] = mapped_column(String(128))
    """The key of its signatures. Unlike a token's text it is stored as it is: each delivery is signed with it."""
    previous_secret: Mapped[str | None] = mapped_column(String(128))
    """The one before, which deliveries are signed with too until `previous_until`."""
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    failing_since: Mapped[datetime | None]
    """The first failed attempt since the last one that succeeded."""
    last_attempt_at: Mapped[datetime | None]
    last_message: Mapped[str] = mapped_column(Text, default="")
    """Why the last attempt failed; empty if it succeeded."""


class WebhookDelivery(Base):
    """An event on its way to a webhook, written in the transaction of what it tells of. The controller sends it."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        Index(None, "webhook_id", "created_at", "id"),
        Index("ix_webhook_delivery_waits", "next_attempt_at", sqlite_where=WAITS, postgresql_where=WAITS),
        Index(None, "ended_at"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=lambda: f"msg-{secrets.token_hex(12)}")
    """The same in all attempts, by which receivers notice repeats."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    """When it happened."""
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime | None]
    """None once it has been delivered, or has failed for good."""
    last_attempt_at: Mapped[datetime | None]
    duration_s: Mapped[float | None]
    """Of the last attempt."""
    response_code: Mapped[int | None]
    """The HTTP status of the last attempt's response; None if there was none."""
    response: Mapped[str] = mapped_column(Text, default="")
    """The beginning of that response's body."""
    message: Mapped[str] = mapped_column(Text, default="")
    """Why the last attempt failed; empty if it succeeded."""
    ended_at: Mapped[datetime | None]
    """When it was delivered, or failed for good."""


class Token(Base):
    """A bearer token. Only its sha256 is stored."""

    __tablename__ = "token"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(32), unique=True, default=lambda: f"tok-{secrets.token_hex(7)}")
    """Identifies it to people; reveals nothing of the token."""
    name: Mapped[str] = mapped_column(String(100), default="")
    """What it is for."""
    owner: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    revoked_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A session of the dashboard. Only the sha256 of the text in its cookie is stored."""

    __tablename__ = "browser_session"
    __table_args__ = (Index(None, "token_id"), Index(None, "seen_at"))

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("token.id"))
    """The token that began it."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now)
    """When its last request came, to the minute."""


class Audit(Base):
    """A change that somebody made or was refused. The database refuses to change or delete an entry."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "actor", "id"), Index(None, "target", "id"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[datetime] = mapped_column(default=now)
    actor: Mapped[str] = mapped_column(String(100))
    """The token's owner."""
    token_id: Mapped[str | None] = mapped_column(String(32))
    action: Mapped[str] = mapped_column(String(64))
    """Such as `job.submit` or `token.revoke`."""
    target: Mapped[str] = mapped_column(String(200))
    """The id or name of what was to be changed."""
    status: Mapped[int]
    """The HTTP status of the response."""
    request_id: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    """Where the request came from."""
    detail: Mapped[dict[str, Any] | None]


class Lease(Base):
    """The right to act as the only controller. The holder renews it with heartbeats."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(200))
    """Host, process and a random part; None if the lease was released."""
    beat: Mapped[int] = mapped_column(default=0)
    """Rises with every heartbeat. Others compare it with the value they read before, so clocks do not matter."""
    beat_at: Mapped[datetime] = mapped_column(default=now)
    """When it last rose; for people and for readiness."""
    round_at: Mapped[datetime | None]
    """When the holder last finished a round."""

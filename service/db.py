"""The control plane's database: tables, sessions, migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    DateTime,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

BUSY_SECONDS = 20


def now() -> datetime:
    return datetime.now(UTC)


class UtcTime(TypeDecorator[datetime]):
    """Points in time in UTC; SQLite forgets the zone, so it is put back."""

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
        dict[str, Any]: JSON(),
        dict[str, str]: JSON(),
    }


class Job(Base):
    """A job, whatever its kind."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "created_at", "id"),
        Index(None, "state"),
        Index(None, "dataset_uri"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text, default="")
    owner: Mapped[str] = mapped_column(String(100))
    priority: Mapped[int]
    labels: Mapped[dict[str, str]]
    spec: Mapped[dict[str, Any]]
    """As submitted, with defaults."""
    resolved_spec: Mapped[dict[str, Any] | None]
    """With every `auto` that the cluster decides filled in; None until an attempt was admitted."""
    notes: Mapped[str] = mapped_column(Text, default="")
    dataset_uri: Mapped[str] = mapped_column(Text)
    dataset_images: Mapped[int | None]
    """Readable images, once an attempt has counted them."""
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    run_id: Mapped[str | None] = mapped_column(String(64))
    artifact_uri: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=0)
    since_attempt: Mapped[int] = mapped_column(default=1)
    """Checkpoints of this attempt and later ones count."""
    failures: Mapped[int] = mapped_column(default=0)
    """Failures charged to the spec's `retry.max_failures`."""
    restarts: Mapped[int] = mapped_column(default=0)
    """Restarts in a row, charged or not; sets the back-off."""
    not_before: Mapped[datetime | None]
    """The next attempt waits until then."""
    waiting_since: Mapped[datetime] = mapped_column(default=now)
    """When it last began to wait for an attempt."""
    deleted_at: Mapped[datetime | None]
    """When somebody deleted it: gone for people, while the controller removes what it left."""
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    body_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    @property
    def run_spec(self) -> dict[str, Any]:
        """The spec that an attempt runs: the resolved one where there is one."""
        return self.resolved_spec or self.spec


class Attempt(Base):
    """One try at a job: one Ray job."""

    __tablename__ = "attempt"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    submission_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text, default="")
    accepted: Mapped[bool] = mapped_column(default=False)
    """Whether Ray is known to have taken the submission."""
    generation: Mapped[int] = mapped_column(default=0)
    """Commands sent to it."""
    command: Mapped[str | None] = mapped_column(String(16))
    """The last one's action."""
    commanded_at: Mapped[datetime | None]
    stop_asked_at: Mapped[datetime | None]
    """When Ray was asked to stop it."""
    heartbeat: Mapped[float | None]
    """The last one seen, in seconds since 1970 by the worker's clock."""
    heartbeat_at: Mapped[datetime | None]
    """When it was first seen, by ours."""
    workers: Mapped[int | None]
    checkpoint: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]
    """When what it left unfinished was removed."""


class Event(Base):
    """One thing that happened to a job; never changed or deleted while the job exists."""

    __tablename__ = "event"
    __table_args__ = (Index(None, "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    time: Mapped[datetime] = mapped_column(default=now)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(String(100))


class Token(Base):
    """A bearer token, known by its sha256 alone."""

    __tablename__ = "token"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(default=now)


class Lease(Base):
    """The right to act as the one controller, held by beating."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(200))
    """Host, process and a random part; None where it was given back."""
    beat: Mapped[int] = mapped_column(default=0)
    """Rises with every sign of life: others compare it with what they saw before, and no clocks."""
    beat_at: Mapped[datetime] = mapped_column(default=now)
    """For people and for readiness."""
    round_at: Mapped[datetime | None]
    """When the holder last finished a round."""


class Database:
    """An engine and its sessions."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(self.engine.execution_options(read_only=True), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that changes nothing and waits for no writer."""
        with self._readers.begin() as session:
            yield session

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception."""
        with self._sessions.begin() as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date."""
        with self.engine.begin() as connection:
            config = migration_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()


def migration_config() -> Config:
    """Alembic's configuration for the migrations inside this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def settings(connection: Any, record: object) -> None:  # noqa: ARG001
        connection.isolation_level = None  # sqlite3 would begin late and only before writes: see "begin" below
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # Immediate: a transaction that reads first and writes later would else fail at once when another writes.
        reads = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine

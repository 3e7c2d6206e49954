"""The control plane's database: tables, sessions, migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    Connection,
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
    exc,
    make_url,
)
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

BUSY_SECONDS: Final = 20
"""How long a writer waits for another in SQLite."""
POSTGRES: Final[dict[str, int | str]] = {
    "application_name": "rcmae",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's parameters where the URL has no others, times in seconds but the last: a host that has gone is noticed."""
POSTGRES_SETTINGS: Final = {
    "statement_timeout": "30s",
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
}
"""The server's, for our sessions: nothing waits for ever. A writer that was stopped or lost ends before those that wait
for it give up."""
MIGRATION_LIMIT: Final = "10min"
WRITERS: Final = 0x72636D6165
"""The number of the lock in Postgres that every writer holds."""


class DatabaseUnreachable(Exception):
    """The database is away, or was too busy to answer in time.

    The transaction changed nothing, unless the connection broke in the very moment of its commit.
    """


class DatabaseUrlError(ValueError):
    """`RCMAE_DATABASE_URL` cannot be used; the text says why, without the URL's password."""


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
        dict[str, Any]: JSON(none_as_null=True),
        dict[str, str]: JSON(none_as_null=True),
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
    """An engine and its sessions; every method raises `DatabaseUnreachable`."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet. Raises `DatabaseUrlError`."""
        parsed = parse_database_url(url)
        self.shown = shown(parsed)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.engine = _sqlite(parsed) if self.is_sqlite else _postgres(parsed)
        reading: dict[str, Any] = {"read_only": True}
        if not self.is_sqlite:  # there too a reader sees one state of the database, and cannot change it
            reading |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(self.engine.execution_options(**reading), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that changes nothing and waits for no writer."""
        with self._reached(), self._readers.begin() as session:
            yield session

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception.

        There is one at a time, in every database: what it has read stays true until it ends, and rows are numbered in
        the order in which others see them. So nothing slow belongs in it.
        """
        with self._reached(), self._sessions.begin() as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema up to date; of several processes one does it and the others wait."""
        config = migration_config()
        with self.migration() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """A transaction, as of a session, in which the schema may be changed."""
        with self._reached(), self.engine.connect().execution_options(migration=True) as connection:
            guard = _without_foreign_keys(connection) if self.is_sqlite else nullcontext()
            with guard, connection.begin():
                yield connection

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError) as error:
            said = " ".join(str(getattr(error, "orig", None) or error).split())
            raise DatabaseUnreachable(f"{self.shown}: {said}") from error


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew, and dropping the old one would take along all that refers to it."""
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def migration_config() -> Config:
    """Alembic's configuration for the migrations inside this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def parse_database_url(url: str) -> URL:
    """The parts of a database's URL; raises `DatabaseUrlError`."""
    forms = "write sqlite:////folder/rcmae.db or postgresql+psycopg://user:password@host:5432/name"
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:  # its text may hold the password
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL is not a database's URL: {forms}") from error
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "postgresql+psycopg"}:
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL begins with {parsed.drivername}://, which is not served: {forms}")
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUrlError(f"RCMAE_DATABASE_URL names no database: {forms}")
    return parsed


def shown(url: URL) -> str:
    """A database's URL as people may see it."""
    return url.set(query={}).render_as_string(hide_password=True)


def _postgres(url: URL) -> Engine:
    settings = " ".join(f"-c {name}={value}" for name, value in POSTGRES_SETTINGS.items())
    own = url.query.get("options", ())  # after ours: of two values of a setting the last counts
    options = " ".join([settings, *((own,) if isinstance(own, str) else own)])
    arguments = {name: value for name, value in POSTGRES.items() if name not in url.query}
    engine = create_engine(
        url.difference_update_query(["options"]),
        connect_args=arguments | {"options": options},
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        pool_recycle=1800,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("migration"):
            for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                connection.exec_driver_sql(f"SET LOCAL {setting} = '{MIGRATION_LIMIT}'")
        if not options.get("read_only"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")

    return engine


def _sqlite(url: URL) -> Engine:
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

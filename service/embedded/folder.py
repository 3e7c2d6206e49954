"""A stack's state folder: its files, and the record of what runs where.

One folder holds everything: databases, artifacts, logs, tokens, and `stack.json`, the record.
"""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import BaseModel, Field

from service.client.errors import ClientError
from service.client.server import HOST, STATE_FILE, TOKEN_FILE, Home
from service.embedded.processes import Identity

PartName = Literal["ray", "mlflow", "api"]
PARTS: Final[tuple[PartName, ...]] = get_args(PartName)

FAILED_FILE: Final = "failed"
"""A supervisor that gave up writes its reason here."""
_LOCK: Final = "stack.lock"
_DATABASE: Final = "rcmae.db"
_MLFLOW_DATABASE: Final = "mlflow.db"
_STUDIES: Final = "studies.db"


class StackError(ClientError):
    """The stack cannot do what was asked; the text says why and what to do."""


class Ports(BaseModel):
    """Where the parts listen on 127.0.0.1; kept when a part restarts."""

    api: int
    mlflow: int
    ray_gcs: int
    ray_dashboard: int
    ray_client: int
    ray_agent: int
    ray_metrics: int


class StackState(BaseModel):
    """What runs where: the file `stack.json`."""

    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Carried by every process of the stack in its environment."""
    home: Home | None = None
    """The folder that this was written in; None before it is written, and in files of earlier releases."""
    ports: Ports | None = None
    temp_dir: Path | None = None
    """Private folder for Ray, short because Unix sockets lie in it; removed when the stack goes down."""
    supervisor: Identity | None = None
    parts: dict[PartName, Identity] = {}
    restarts: dict[PartName, int] = {}
    artifact_root: str | None = None
    """Where runs' artifacts lie, if not in the state folder."""
    database_url: str | None = Field(None, repr=False)
    """Where the jobs are kept, if not in SQLite in the state folder; with its password."""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.ports.api}" if self.ports else ""


@dataclass(frozen=True)
class Folder:
    """Files of a stack's state folder."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Folder:
        """The folder at a path; raises `StackError` for a path that cannot stand in a database's URL."""
        path = path.expanduser().absolute()
        if set("?#%") & set(str(path)):
            raise StackError(f"{path}: the state folder's path must not hold ? # or %: choose another with --state-dir")
        return cls(path)

    def make(self) -> None:
        """Make the folder, readable by its owner alone, and the cluster's token."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        for token in (self.token, self.ray_token):
            if not token.exists():
                token.touch(0o600)
                token.write_text(secrets.token_urlsafe(32))

    @property
    def token(self) -> Path:
        """The admin's token for the API."""
        return self.path / TOKEN_FILE

    @property
    def ray_token(self) -> Path:
        return self.path / "ray-token"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def artifact_root(self) -> str:
        """Where runs' artifacts lie: a path or an ``s3://`` URI."""
        return self.load().artifact_root or str(self.path / "artifacts")

    @property
    def database_url(self) -> str:
        """Where the jobs are kept."""
        return self.load().database_url or f"sqlite:///{self.path}/{_DATABASE}"

    @property
    def mlflow_url(self) -> str:
        """Where MLflow keeps its records."""
        return f"sqlite:///{self.path}/{_MLFLOW_DATABASE}"

    @property
    def study_url(self) -> str:
        """Where the trials of searches are kept."""
        return f"sqlite:///{self.path}/{_STUDIES}"

    @property
    def has_jobs(self) -> bool:
        """Whether jobs are kept in this folder."""
        return (self.path / _DATABASE).exists()

    @property
    def has_runs(self) -> bool:
        """Whether MLflow already has records here, which name the artifact root."""
        return (self.path / _MLFLOW_DATABASE).exists()

    @property
    def used(self) -> bool:
        """Whether a stack was ever started here."""
        return (self.path / _LOCK).exists()

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def load(self) -> StackState:
        """The recorded state; an empty one where there is none.

        In a copy of another stack's folder, only the settings are the copy's too: the processes, the temporary folder
        and the id that finds them are the original's, and nothing done here may touch them.
        """
        try:
            state = StackState.model_validate_json((self.path / STATE_FILE).read_text())
        except FileNotFoundError:
            return StackState()
        if state.home is None or state.home.is_at(self.path):
            return state
        return StackState(artifact_root=state.artifact_root, database_url=state.database_url)

    def save(self, state: StackState) -> None:
        """Replace the recorded state; a reader sees the old one or the new one."""
        fresh = self.path / f"{STATE_FILE}.new"
        fresh.touch(0o600)
        fresh.write_text(state.model_copy(update={"home": Home.of(self.path)}).model_dump_json(indent=2))
        fresh.replace(self.path / STATE_FILE)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the right to change what runs, which ends with the process; false where another process has it."""
        with (self.path / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

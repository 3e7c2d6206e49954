"""A stack's state folder: its files, and the record of what runs where.

One folder holds everything: databases, artifacts, logs, tokens, and `stack.json`, the record.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import BaseModel, Field

from service import signing_key
from service.atomic import write_atomically
from service.client.errors import ClientError
from service.client.server import HOST, STATE_FILE, TOKEN_FILE, Home
from service.embedded.processes import Identity

PartName = Literal["ray", "mlflow", "api"]
PARTS: Final[tuple[PartName, ...]] = get_args(PartName)

FAILED_FILE: Final = "failed"
"""A supervisor that gave up writes its reason here."""
MLFLOW_APP: Final = "rcmae"
"""The entry point of `service.embedded.mlflow_app`."""
MLFLOW_USER: Final = "rcmae"
MLFLOW_PASSWORD_VARIABLE: Final = "RCMAE_MLFLOW_PASSWORD_FILE"  # noqa: S105 - names a file
_LOCK: Final = "stack.lock"
_DATABASE: Final = "rcmae.db"
_MLFLOW_DATABASE: Final = "mlflow.db"
_STUDIES: Final = "studies.db"
_ARTIFACTS: Final = "artifacts"
_CONTENTS: Final = (_LOCK, _DATABASE, _MLFLOW_DATABASE, _STUDIES, _ARTIFACTS)
"""What two stacks must not share."""
_SIGNING_KEY: Final = "signing-key"
_OWN: Final = (*_CONTENTS, TOKEN_FILE, STATE_FILE, FAILED_FILE, "ray-token", "mlflow-password", _SIGNING_KEY, "logs",
               "cache", "demo")  # fmt: skip
"""The names, or their beginnings, of all that a stack writes."""


class StackError(ClientError):
    """The stack cannot do what was asked; the text says why and what to do."""


class FolderMoved(StackError):
    """A stack's path no longer leads to its state folder."""


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
    """What runs where: the content of `stack.json`."""

    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Carried by every process of the stack in its environment."""
    home: Home | None = None
    """The folder that this is about; None where there is no folder yet."""
    ports: Ports | None = None
    temp_dir: Path | None = None
    """Ray's private folder, with a short path because it holds Unix sockets; removed when the stack goes down."""
    supervisor: Identity | None = None
    parts: dict[PartName, Identity] = {}
    restarts: dict[PartName, int] = {}
    artifact_root: str | None = None
    """Where runs' artifacts are, if not in the state folder."""
    database_url: str | None = Field(None, repr=False)
    """The database that holds the jobs, if not SQLite in the state folder; with its password."""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.ports.api}" if self.ports else ""


@dataclass(frozen=True)
class Folder:
    """A stack's state folder and the files in it."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Folder:
        """The folder at a path; raises `StackError` for a path that cannot be part of a database's URL."""
        path = path.expanduser().absolute()
        if set("?#%") & set(str(path)):
            raise StackError(f"{path}: the state folder's path must not hold ? # or %: choose another with --state-dir")
        return cls(path)

    def make(self) -> None:
        """Make the folder with its credentials and the key that signs backbones, and close it to other users.

        Raises `StackError` for a folder that cannot be closed, or that seems to be used for something else.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.stat().st_mode & 0o077 and not self.token.exists() and any(self.path.iterdir()):
            raise StackError(
                f"{self.path} holds other files and is open to other users of this machine: name a new folder with "
                f"--state-dir, or close it to them with chmod 700 {self.path}"
            )
        self.close_to_others()
        self.logs.mkdir(exist_ok=True, mode=0o700)
        for credential in self.credentials:
            if not credential.exists():
                signs = credential == self.signing_key
                text = signing_key.to_pem(signing_key.new_key()) if signs else secrets.token_urlsafe(32)
                write_atomically(credential, text.encode(), 0o600)

    def close_to_others(self) -> None:
        """Take every right to the folder and to what a stack writes in it from other users; links are not followed.

        Raises `StackError` for a file whose rights cannot be changed.
        """
        _close_to_others(self.path)
        for own in (path for path in self.path.iterdir() if path.name.startswith(_OWN)):
            _close_to_others(own)
            for parent, folders, files in os.walk(own):
                for name in (*folders, *files):
                    _close_to_others(Path(parent, name))

    @property
    def token(self) -> Path:
        """The admin's token for the API."""
        return self.path / TOKEN_FILE

    @property
    def ray_token(self) -> Path:
        return self.path / "ray-token"

    @property
    def credentials(self) -> tuple[Path, ...]:
        """The files with a secret each."""
        return self.token, self.ray_token, self.mlflow_password, self.signing_key

    @property
    def mlflow_password(self) -> Path:
        return self.path / "mlflow-password"

    @property
    def signing_key(self) -> Path:
        """The private key that signs backbones."""
        return self.path / _SIGNING_KEY

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def artifact_root(self) -> str:
        """Where runs' artifacts are: a path or an ``s3://`` URI."""
        return self.load().artifact_root or str(self.path / _ARTIFACTS)

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
        """The recorded state; an empty one if there is none.

        In a copy of another stack's folder, only the settings are the copy's too: the processes, the temporary folder
        and the id that finds them are the original's, and nothing done here may touch them. The ports are the copy's
        if the original is gone.
        """
        try:
            here = Home.of(self.path)
        except FileNotFoundError:
            return StackState()
        recorded = self._recorded()
        if recorded is None:
            return StackState(home=here)
        if recorded.home is None:  # written by an earlier release
            return recorded.model_copy(update={"home": here})
        artifact_root = _carried(recorded.artifact_root, Path(recorded.home.path), Path(here.path))
        if recorded.home.is_at(self.path):
            return recorded.model_copy(update={"artifact_root": artifact_root})
        return StackState(
            home=here,
            ports=None if recorded.home.still_there else recorded.ports,
            artifact_root=artifact_root,
            database_url=recorded.database_url,
        )

    def _recorded(self) -> StackState | None:
        """The record as it is, which in a copy is about the original."""
        try:
            return StackState.model_validate_json((self.path / STATE_FILE).read_text())
        except FileNotFoundError:
            return None

    @property
    def original(self) -> Path | None:
        """The folder that this one was copied from, while that exists and no stack has been started from the copy."""
        recorded = self._recorded()
        if recorded is None or recorded.home is None or recorded.home.is_at(self.path):
            return None
        return Path(recorded.home.path) if recorded.home.still_there else None

    def shared_with(self, other: Path) -> str | None:
        """The name of a file or folder that is the same one in both, by a hard or a symbolic link; None if none is."""
        for name in _CONTENTS:
            ours, theirs = self.path / name, other / name
            if ours.exists() and theirs.exists() and ours.samefile(theirs):
                return name
        return None

    def is_home_of(self, state: StackState) -> bool:
        """Whether the path still leads to the folder that a state is about, and not to another one or to none."""
        return state.home is not None and state.home.is_reached_by(self.path)

    def save(self, state: StackState) -> None:
        """Replace the recorded state; a reader sees the old one or the new one.

        Raises `FolderMoved` if another folder has taken the place of the state's, so that its own record is kept.
        """
        if not self.is_home_of(state):
            raise FolderMoved(f"the state folder is no longer at {self.path}")
        text = state.model_copy(update={"home": Home.of(self.path)}).model_dump_json(indent=2)
        write_atomically(self.path / STATE_FILE, text.encode(), 0o600)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the exclusive right to change what runs; yields false if another process has it.

        The kernel releases it when the process ends.
        """
        (self.path / _LOCK).touch(0o600)
        with (self.path / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _carried(path: str | None, before: Path, now: Path) -> str | None:
    """A path that leads to the same place in a folder after that has been moved or copied, if it leads into it."""
    if path is None or not Path(path).is_relative_to(before):
        return path
    return str(now / Path(path).relative_to(before))


def _close_to_others(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & 0o077:
            path.chmod(stat.S_IMODE(mode) & 0o700)
    except FileNotFoundError:  # a running stack removes files
        return
    except OSError as error:
        raise StackError(
            f"{path} can be read by other users of this machine, and that cannot be changed ({error.strerror}): make "
            "yourself its owner, or remove it"
        ) from error

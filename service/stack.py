"""The embedded stack behind `rcmae up`: what it consists of, where its state is, and starting and ending it as a whole.

One state folder holds everything: databases, artifacts, logs, tokens, and `stack.json` with what runs where. The parts
(Ray's head, the MLflow server, the API) are started and watched by `service.supervisor`, a process of its own.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import httpx
from pydantic import BaseModel, Field

from service import processes
from service.processes import Identity

PartName = Literal["ray", "mlflow", "api"]
PARTS: Final[tuple[PartName, ...]] = get_args(PartName)

DEFAULT_STATE_DIR: Final = ".rcmae"
STATE_DIR_VARIABLE: Final = "RCMAE_STATE_DIR"
DEFAULT_PORT: Final = 8000
HOST: Final = "127.0.0.1"
START_LIMIT_S: Final = 240.0
STOP_LIMIT_S: Final = 60.0
FAILED_FILE: Final = "failed"
"""Written by a supervisor that gave up: why."""


class StackError(Exception):
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
    ports: Ports | None = None
    temp_dir: Path | None = None
    """Private folder for Ray, short because Unix sockets lie in it; removed when the stack goes down."""
    supervisor: Identity | None = None
    parts: dict[PartName, Identity] = {}
    restarts: dict[PartName, int] = {}

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

    @classmethod
    def default(cls) -> Folder:
        return cls.at(Path(os.environ.get(STATE_DIR_VARIABLE) or DEFAULT_STATE_DIR))

    def make(self) -> None:
        """Make the folder, readable by its owner alone, and the cluster's token."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        self.artifacts.mkdir(exist_ok=True)
        for token in (self.token, self.ray_token):
            if not token.exists():
                with token.open("x", opener=_private) as file:
                    file.write(secrets.token_urlsafe(32))

    @property
    def token(self) -> Path:
        """The admin's token for the API."""
        return self.path / "token"

    @property
    def ray_token(self) -> Path:
        return self.path / "ray-token"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def load(self) -> StackState:
        """The recorded state; an empty one where there is none."""
        try:
            return StackState.model_validate_json((self.path / "stack.json").read_text())
        except FileNotFoundError:
            return StackState()

    def save(self, state: StackState) -> None:
        """Replace the recorded state; a reader sees the old one or the new one."""
        fresh = self.path / "stack.json.new"
        fresh.write_text(state.model_dump_json(indent=2))
        fresh.replace(self.path / "stack.json")

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the right to change what runs, which ends with the process; false where another process has it."""
        with (self.path / "stack.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def prepare(state: StackState, port: int | None) -> StackState:
    """The state with ports and a temporary folder, those of before wherever they can still be had.

    ``port`` is the API's if the user named one. Raises `StackError` when it is taken.
    """
    if state.temp_dir is None or not state.temp_dir.is_dir():
        # Not under TMPDIR: Ray refuses a path over 45 characters, and makes its own folder open to all users.
        state = state.model_copy(update={"temp_dir": Path(tempfile.mkdtemp(prefix="rcmae-", dir="/tmp"))})  # noqa: S108
    held = {name for name, part in state.parts.items() if part.alive}
    fresh = _fresh_ports(port)
    old = state.ports
    if old is None:
        return state.model_copy(update={"ports": fresh})
    kept: dict[str, int] = {}
    for name, number in old:
        part = name.partition("_")[0]
        usable = part in held or (name == "api" and port not in {None, number} and False) or processes.port_is_free(number)
        kept[name] = number if usable else getattr(fresh, name)
    return state

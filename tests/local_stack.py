"""A real embedded stack, as tests see and drive it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rcmae import Client
from service.client.server import HOST
from service.embedded import processes
from service.embedded.folder import Folder, StackState

NOT_INHERITED = ("RCMAE_URL", "RCMAE_TOKEN", "RCMAE_STATE_DIR")
S3_SECRET = "a-secret-of-the-storage-that-is-shown-nowhere"
"""In the environment of the shared stack, which has no use for it."""

STARTED_AGAIN_S = 180.0
"""What an API that was killed may take to answer again: 5 s of a core, for which jobs and other tests compete."""


@dataclass(frozen=True)
class Stack:
    """Ray, MLflow and the API, up."""

    state_dir: Path
    url: str
    token: str
    client: Client

    @property
    def folder(self) -> Folder:
        return Folder(self.state_dir)

    @property
    def state(self) -> StackState:
        """What runs where now."""
        return self.folder.load()

    @property
    def mlflow_url(self) -> str:
        """MLflow's address with its password, as MLflow's client takes it."""
        password = self.folder.mlflow_password.read_text()
        return f"http://rcmae:{password}@{HOST}:{self.state.ports.mlflow}"

    def rcmae(self, *arguments: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against this stack."""
        return rcmae(self.state_dir, *arguments, timeout=timeout, **variables)

    def bash(self, script: str, folder: Path, timeout: float) -> str:
        """What a script prints that was written for a stack whose state folder is ``.rcmae``; it must succeed."""
        (folder / ".rcmae").symlink_to(self.state_dir)
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:  # a script that waits for a job waits for ever where that fails
            jobs = "".join(f"{job.id} {job.name} {job.state}: {job.message}\n" for job in self.client.jobs())
            raise AssertionError(f"not within {timeout:g} s; printed:\n{error.output}\nthe jobs:\n{jobs}") from error
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout


def rcmae(state_dir: Path, *arguments: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as users do, with a state folder and further environment variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=inherited | {"RCMAE_STATE_DIR": str(state_dir)} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def running_stack(state_dir: Path, *arguments: str, **variables: str) -> Iterator[Stack]:
    """A stack from `rcmae up` with further arguments and environment variables to `rcmae down`, with nothing left."""
    try:
        started = rcmae(state_dir, "up", "--detach", *arguments, **variables)
        assert started.returncode == 0, started.stderr
        folder = Folder(state_dir)
        url, token = folder.load().url, folder.token.read_text()
        with Client(url, token, patience_s=STARTED_AGAIN_S) as client:
            yield Stack(state_dir, url, token, client)
    finally:
        if state_dir.exists():
            stack_id = Folder(state_dir).load().id
            rcmae(state_dir, "down", **variables)
            assert processes.members(stack_id) == []

"""The embedded stack behind `rcmae up`: starting, stopping and inspecting it as a whole.

The parts (Ray's head, the MLflow server, the API) are started and watched by `service.embedded.supervisor`, a process
of its own; this module starts it, waits for it and stops it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from service.client.server import HOST
from service.embedded import processes
from service.embedded.folder import FAILED_FILE, PARTS, Folder, PartName, StackError, StackState
from service.embedded.locations import (
    choose_artifact_root,
    choose_database_url,
    redacted_database_url,
    require_no_links,
    require_nothing_shared,
)
from service.embedded.parts import DATABASE_VARIABLE, S3_PROFILE_VARIABLE, port_of, reasons_not_ready, works

START_LIMIT_S: Final = 240.0
STOP_LIMIT_S: Final = 60.0


class PartView(BaseModel):
    """The state of one part, for display."""

    name: PartName
    pid: int | None
    alive: bool
    works: bool
    address: str
    restarts: int


class StackView(BaseModel):
    """The state of a stack, for display."""

    up: bool
    """Whether the supervisor runs, every part answers and jobs can run."""
    url: str
    state_dir: str
    supervisor: int | None
    """The number of its process."""
    temp_dir: str | None
    artifact_root: str
    database: str
    """Where the jobs are kept, without the password."""
    parts: list[PartView]
    reasons: list[str]
    """Why no job can run although the API answers, in its words."""


def status(folder: Folder) -> StackView:
    """Check every part now."""
    state = folder.load()
    supervisor = state.supervisor if state.supervisor and state.supervisor.alive else None
    parts = []
    for name in PARTS if state.ports else ():
        identity = state.parts.get(name)
        alive = identity is not None and identity.alive
        parts.append(
            PartView(
                name=name,
                pid=identity.pid if identity and alive else None,
                alive=alive,
                works=alive and works(name, state),
                address=f"http://{HOST}:{port_of(name, state)}",
                restarts=state.restarts.get(name, 0),
            )
        )
    reasons = reasons_not_ready(state) if any(part.name == "api" and part.works for part in parts) else []
    return StackView(
        up=supervisor is not None and bool(parts) and all(part.works for part in parts) and not reasons,
        url=state.url,
        state_dir=str(folder.path),
        supervisor=supervisor.pid if supervisor else None,
        temp_dir=str(state.temp_dir) if state.temp_dir else None,
        artifact_root=folder.artifact_root,
        database=redacted_database_url(folder),
        parts=parts,
        reasons=reasons,
    )


def is_supervised(folder: Folder) -> bool:
    """Whether a supervisor runs."""
    if not folder.used:
        return False
    with folder.lock() as mine:
        return not mine


def up(
    folder: Folder,
    port: int | None,
    report: Callable[[str], None],
    artifact_root: str | None = None,
    database_url: str | None = None,
) -> tuple[StackState, bool]:
    """Start what is not up yet and wait until all of it works; also returns whether it was up already.

    ``artifact_root`` is where artifacts are to lie and ``database_url`` where jobs are to be kept, the recorded ones by
    default; both are tried before anything starts. ``report`` is called with each part that has come up. A folder that
    was moved is stopped first. Raises `StackError` with the reason and the remedy.
    """
    folder.make()
    require_nothing_shared(folder)
    home = folder.load().home
    if home and not home.still_there:  # it was moved: what still runs would write on to where it was
        down(folder)
    already, before = is_supervised(folder), folder.load()
    root = choose_artifact_root(folder, artifact_root)
    database = choose_database_url(folder, database_url)
    if already and port not in {None, getattr(before.ports, "api", port)}:
        raise StackError(f"the stack is up at {before.url}: run `rcmae down` before giving it another port")
    if already and database != before.database_url:
        raise StackError(f"the stack is up at {before.url}: run `rcmae down` before giving it another database URL")
    if not already:
        if root is None and not os.path.lexists(folder.artifact_root):
            Path(folder.artifact_root).mkdir(0o700)  # whatever this shell's umask is
        try_artifact_root(root or folder.artifact_root)
        try_database(database)
    start = partial(_start_supervisor, folder, port, root, database)
    process = None if already else start()
    return _wait_until_up(folder, start, process, report), already


def try_artifact_root(root: str) -> None:
    """Write, read and delete a small file there; raises `StackError` with what is wrong and what to do."""
    # Imported here: `rcmae down` and `rcmae status` work without S3's packages.
    from service.adapters.storage import Artifacts, StorageUnreachable  # noqa: PLC0415

    try:
        Artifacts(root, os.environ.get(S3_PROFILE_VARIABLE)).probe()
    except StorageUnreachable as error:
        raise StackError(f"the artifact root cannot be used: {error}") from error


def try_database(url: str | None) -> None:
    """Connect to a Postgres database; raises `StackError` with what is wrong. A SQLite file needs no check."""
    if url is None:
        return
    from service.db.database import Database, DatabaseUnreachable  # noqa: PLC0415

    database = Database(url)
    try:
        with database.read() as session:
            session.connection()
    except DatabaseUnreachable as error:
        raise StackError(f"the database cannot be used: {error}") from error
    finally:
        database.close()


def _start_supervisor(
    folder: Folder, port: int | None, artifact_root: str | None, database_url: str | None
) -> subprocess.Popen[bytes]:
    (folder.path / FAILED_FILE).unlink(missing_ok=True)
    arguments = [
        *(["--port", str(port)] if port else []),
        *(["--artifact-root", artifact_root] if artifact_root else []),
    ]
    folder.log_of("supervisor").touch(0o600)
    with folder.log_of("supervisor").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "service.embedded.supervisor", "--state-dir", str(folder.path), *arguments],
            cwd=folder.path,
            env=os.environ | ({DATABASE_VARIABLE: database_url} if database_url else {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_until_up(
    folder: Folder,
    start: Callable[[], subprocess.Popen[bytes]],
    process: subprocess.Popen[bytes] | None,
    report: Callable[[str], None],
) -> StackState:
    reported: set[PartName] = set()
    reasons: list[str] = []
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        ended = process is not None and process.poll() is not None
        state = folder.load()
        if state.supervisor and state.supervisor.alive:
            for part in PARTS:
                identity = state.parts.get(part)
                if part not in reported and identity and identity.alive and works(part, state):
                    reported.add(part)
                    report(part)
            if len(reported) == len(PARTS):
                reasons = reasons_not_ready(state)
                if not reasons:
                    return state
        elif process is None and not is_supervised(folder):
            process = start()  # the supervisor that held the lock was about to end
        elif ended and not is_supervised(folder):
            raise StackError(_why_failed(folder))
        time.sleep(processes.POLL_S)
    missing = ", ".join(part for part in PARTS if part not in reported) or "; ".join(reasons)
    raise StackError(f"still waiting for {missing} after {START_LIMIT_S:.0f} s: see {folder.logs}, then `rcmae down`")


def _why_failed(folder: Folder) -> str:
    try:
        return (folder.path / FAILED_FILE).read_text()
    except FileNotFoundError:
        return f"the supervisor ended at once: see {folder.log_of('supervisor')}"


def down(folder: Folder) -> bool:
    """Stop everything and leave the data; returns false if nothing ran. Raises `StackError` if it cannot be stopped."""
    if not folder.used:
        return False
    require_no_links(folder)  # a linked lock is held by the original's supervisor
    state = folder.load()
    ran = is_supervised(folder) or bool(processes.members(state.id))
    end = time.monotonic() + STOP_LIMIT_S
    while time.monotonic() < end:
        with folder.lock() as mine:
            if mine:
                stop_parts(folder, folder.load())
                return ran
        supervisor = folder.load().supervisor
        if supervisor and supervisor.alive:
            os.kill(supervisor.pid, signal.SIGTERM)
        time.sleep(5 * processes.POLL_S)
    raise StackError(f"the supervisor does not end: see {folder.log_of('supervisor')}")


def stop_parts(folder: Folder, state: StackState) -> None:
    """End every part, whoever started it, and whatever else the stack left. Call it with the lock held.

    The record of a folder that was moved or removed meanwhile goes with it, and names processes that have ended.
    Jobs are killed without warning: an attempt that vanishes is resumed from its last checkpoint at the next `up`.
    """
    if api := state.parts.get("api"):
        processes.stop_group(api, patience_s=20)  # 5 s for requests, 8 s for the round, and giving the lease back
    if ray := state.parts.get("ray"):
        processes.kill(processes.outside(processes.members(state.id, "ray"), ray.pid))
        processes.stop_group(ray, patience_s=10)
    if mlflow := state.parts.get("mlflow"):
        processes.stop_group(mlflow, patience_s=10)
    processes.sweep(state.id)
    if state.temp_dir:
        shutil.rmtree(state.temp_dir, ignore_errors=True)
    ended = state.model_copy(update={"temp_dir": None, "supervisor": None, "parts": {}, "restarts": {}})
    if ended != state and folder.is_home_of(state):
        folder.save(ended)

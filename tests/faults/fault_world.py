"""The stack that faults are made in, and what can be found out about a job of it afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from fault_gates import Gates, Moment
from live import make_spec, wait_state
from local_stack import Stack
from mlflow.tracking import MlflowClient
from postgres_server import PostgresServer
from s3_server import FaultProxy, S3Server
from s3fs import S3FileSystem

from service.embedded.processes import Identity
from service.jobs.schemas import AttemptView, EventView, JobView
from service.jobs.state import State
from trainer.protocol.names import heartbeat

CPUS = 12
"""Of a node: logical ones, so that all jobs of a fault, and those that nothing happens to, run at once anywhere."""
STEPS_PER_EPOCH, EPOCHS = 5, 4
FILES = 5
"""Of a checkpoint, without its manifest."""
WEIGHTS = ("student", "teacher", "optimizer")
END_SECONDS = 600.0
"""For all jobs of a fault, with other tests on the same cores."""


def small_spec(name: str, workers: int = 1, cpus: int = 1, **parts: Any) -> dict[str, Any]:
    """Twenty steps; a checkpoint after every five, an evaluation at the start, the middle and the end."""
    return make_spec(
        name=name,
        register_as=name,
        optimization={"epochs": EPOCHS, "global_batch_size": 320},
        resources={"workers": workers, "cpus_per_worker": cpus},
        checkpoint={"every_epochs": 1, "keep": 100},
        evaluation={"every_epochs": 2, "probes": []},
        **parts,
    )


@dataclass(frozen=True)
class Manifest:
    """A committed checkpoint."""

    attempt: int
    step: int
    time: datetime


@dataclass
class World:
    """A stack with artifacts in S3 and jobs in Postgres, whose jobs can be held and whose parts can be cut off."""

    stack: Stack
    s3: S3Server
    proxy: FaultProxy
    """The stack's way to S3."""
    postgres: PostgresServer
    gates: Gates
    environment: dict[str, str]
    """The variables that the stack was started with."""
    _undisturbed: dict[int, JobView] = field(default_factory=dict)
    """By number of workers."""
    _final: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.stack.mlflow_url)

    @cached_property
    def files(self) -> S3FileSystem:
        """The artifacts, past the proxy."""
        return self.s3.filesystem()

    def leave_undisturbed(self, *workers: int) -> None:
        """Start the jobs that others are compared with, where that has not been done yet."""
        for number in workers:
            if number not in self._undisturbed:
                job = self.stack.client.submit(small_spec(f"undisturbed-{number}", number))
                self._undisturbed[number] = job

    def wait_for_undisturbed(self) -> None:
        """Nothing is to happen to them."""
        for number, job in self._undisturbed.items():
            if number not in self._final:
                self._final[number] = self.final(wait_state(self.stack, job.id, State.SUCCEEDED))

    def undisturbed(self, workers: int) -> dict[str, str]:
        """What a job of so many workers ends with that nothing happened to."""
        return self._final[workers]

    def folder(self, job: JobView) -> str:
        """A job's artifact folder, in the storage's own terms."""
        assert job.run_id
        return str(self.mlflow.get_run(job.run_id).info.artifact_uri).removeprefix("s3://")

    def final(self, job: JobView) -> dict[str, str]:
        """The sha256 of student, teacher and optimiser in the last checkpoint, and of the registered backbone."""
        newest = self.stack.client.attempts(job.id)[-1].checkpoint
        files = {name: self.files.cat(f"{self.folder(job)}/{newest}/{name}.safetensors") for name in WEIGHTS}
        with tempfile.TemporaryDirectory() as directory:
            self.stack.client.pull(job.name, Path(directory) / "hf", version=1)
            files["registered"] = (Path(directory) / "hf" / "model.safetensors").read_bytes()
        return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

    def manifests(self, job: JobView) -> list[Manifest]:
        """By attempt, then step."""
        found = []
        for path in self.files.glob(f"{self.folder(job)}/checkpoints/a*/*/manifest.json"):
            said = json.loads(self.files.cat(path))
            found.append(Manifest(said["attempt"], said["step"], self.files.info(path)["LastModified"]))
        return sorted(found, key=lambda manifest: (manifest.attempt, manifest.step))

    def last_heartbeat(self, job: JobView, attempt: int) -> float | None:
        """When an attempt last showed life, in seconds since 1970; None if it never did."""
        beat = self.mlflow.get_run(job.run_id).data.tags.get(heartbeat(attempt))
        return float(beat) if beat else None

    def begun_at(self, job: JobView, attempt: int) -> int | None:
        """The step an attempt resumed at, 0 where it began from nothing; None where it did not come so far."""
        page = self.stack.client.logs(job.id, attempt=attempt, source="rank-0")
        for line in page.items:
            if line.message.startswith("Resuming at step "):
                return int(line.message.split()[3])
            if line.message.startswith("Training on "):
                return 0
        return None

    def attempts(self, job: JobView) -> list[AttemptView]:
        return self.stack.client.attempts(job.id)

    def events(self, job: JobView) -> list[EventView]:
        return list(self.stack.client.events(job.id))

    @contextmanager
    def filled(self, cpus: int) -> Iterator[None]:
        """So many CPUs of the first node are taken by a job that has not begun to train, and that nothing happens to.

        It is cancelled in the end, and must not have been touched.
        """
        name, start = f"bystander-{secrets.token_hex(4)}", Moment("worker")
        self.gates.close(name, start)
        job = self.stack.client.submit(small_spec(name, cpus=cpus))
        process = Identity.of(self.gates.held(name, start))
        yield
        assert process.alive
        assert self.stack.client.job(job.id).attempts == 1
        self.stack.client.cancel(job.id)
        wait_state(self.stack, job.id, State.CANCELLED)
        self.gates.open(name)

    def kill(self, *pids: int) -> None:
        """SIGKILL; one that has gone already is no less dead."""
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

"""A reconciler over stand-ins, and what tests do with it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service_fakes import FakeMlflow, FakeRay, add_job, events_of, job_of
from sqlalchemy import update

from service.adapters.ray_cluster import RayState
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.auth.caller import Caller
from service.auth.scopes import Role
from service.context.app_state import AppState
from service.controller.context import ControllerContext
from service.controller.lease import Lease
from service.controller.loop import Reconciler
from service.controller.versions import check
from service.db.database import Database
from service.db.tables import WorkItem
from service.jobs import repository
from service.jobs.lifecycle import Verb
from service.jobs.schemas import ResumeBody
from service.jobs.service import apply_verb
from service.jobs.work import Work
from service.kinds.registry import KINDS
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.outcome import Outcome

REMOVALS = (Work.REMOVE_JOB, Work.REMOVE_VERSION)
SWEEPS = (Work.FIND_CHECKPOINTS, Work.SWEEP_CHECKPOINTS, Work.SWEEP_RECORDS, Work.SWEEP_RUNS)


class World:
    """A reconciler and all it looks at."""

    def __init__(self, settings: Settings, database: Database, ray: FakeRay, mlflow: FakeMlflow) -> None:
        self.database, self.ray, self.mlflow = database, ray, mlflow
        artifacts = Artifacts(settings.artifact_root)
        self.studies = Studies(settings.study_url)
        lease = Lease(database, 3600, standby=True)
        lease.tick()
        lease._last_seen_at = float("-inf")  # as if the holder before, if there is one, had stood still for long enough
        lease.tick()
        self.app_state = AppState(settings, database, ray, mlflow, artifacts, self.studies, KINDS)
        self.context = ControllerContext(self.app_state, KINDS, lease)
        self.reconciler = Reconciler(self.context)

    def add(self, **fields: Any) -> str:
        return add_job(self.database, **fields)

    def rounds(self, count: int = 1) -> None:
        """Rounds, each with the work that it leaves to workers, far enough apart that everything is tried again."""
        for _ in range(count):
            self._later(SWEEPS, other=True)
            self.app_state.wake.clear()
            self.reconciler.round()
            self.reconciler.work.run_all()
            if self.app_state.wake.is_set():  # an attempt has ended: its resources are free
                self.reconciler.round()
            self.reconciler.removals.run_all(REMOVALS)

    def sweep(self) -> None:
        """Make each sweep once, whatever was away before."""
        for kinds in (SWEEPS, (Work.SWEEP_CHECKPOINTS,)):  # the first ones find what the last one is to do
            self._later(kinds)
            self.reconciler.removals.run_all(kinds)

    def _later(self, kinds: tuple[Work, ...], other: bool = False) -> None:
        """As if the pauses of work of these kinds, or of all other ones, and of all dependencies had passed."""
        for need in vars(self.context.dependencies).values():
            need._next = 0.0
        of_kinds = WorkItem.kind.in_([kind.value for kind in kinds])
        passed = datetime(2020, 1, 1, tzinfo=UTC)
        with self.database.session() as session:
            session.execute(update(WorkItem).where(~of_kinds if other else of_kinds).values(due_at=passed))

    def compare_versions(self) -> None:
        """Compare the rows of versions with MLflow, whatever was away before."""
        for need in vars(self.context.dependencies).values():
            need._next = 0.0
        check(self.context)

    def state(self, job_id: str) -> str:
        return job_of(self.database, job_id).state

    def states(self, job_id: str) -> list[str]:
        return [event.state for event in events_of(self.database, job_id)]

    def verb(self, job_id: str, verb: Verb, body: ResumeBody | None = None) -> str:
        return apply_verb(self.app_state, Caller("alice", Role.SUBMITTER), job_id, verb, body).state

    def silent(self, job_id: str, seconds: float, mlflow_up: float = 1e6, number: int = 1) -> None:
        """As if the last heartbeat had been seen at looks over so long a time, and MLflow had answered for so long."""
        self.passes(job_id, "beat", seconds, number)
        self.context.dependencies.mlflow._since = time.monotonic() - mlflow_up

    def passes(self, job_id: str, what: str, seconds: float, number: int = 1) -> None:
        """As if looks over so long a time had seen the same: "beat", "start", "command" or "stop"."""
        self.reconciler.observer.watch._seen[(job_id, number)][what].seconds = seconds

    def nothing_changes(self, seconds: float) -> None:
        """As if looks over so long a time had seen all attempts as they are."""
        for attempt in self.reconciler.observer.watch._seen.values():
            for seen in attempt.values():
                seen.seconds += seconds

    def run_attempt(self, job_id: str, number: int = 1) -> None:
        """Bring a job with a submitted attempt to running."""
        self.ray.jobs[f"{job_id}-a{number}"] = RayState.RUNNING
        self.rounds()
        self.mlflow.beat(job_id, number, time.time())
        self.rounds()
        assert self.state(job_id) == "running"

    def end_attempt(self, job_id: str, outcome: Outcome | None, number: int = 1, ray: str = "SUCCEEDED") -> None:
        """What an attempt leaves, and Ray's word on it."""
        if outcome:
            file = Path(job_of(self.database, job_id).artifact_uri) / names.outcome_file(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(outcome.model_dump_json())
        self.ray.jobs[f"{job_id}-a{number}"] = RayState(ray)

    def due(self, job_id: str) -> None:
        """Let the back-off of a recovering job pass."""
        with self.database.session() as session:
            repository.get(session, job_id).not_before = datetime(2020, 1, 1, tzinfo=UTC)

    def not_due(self, job_id: str) -> None:
        """Let the back-off of a recovering job last, however slow the machine is."""
        with self.database.session() as session:
            repository.get(session, job_id).not_before = datetime(2100, 1, 1, tzinfo=UTC)

    def running(self, **fields: Any) -> str:
        job_id = self.add(**fields)
        self.rounds()
        self.run_attempt(job_id)
        return job_id

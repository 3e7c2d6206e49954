"""Removes what attempts and jobs leave behind, once it is old enough, and logs each removal."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from service.adapters.mlflow_runs import OpenRun
from service.adapters.storage import OutsideRoot
from service.controller.context import ControllerContext
from service.controller.queue import Task
from service.db.tables import Attempt, Job, now
from service.jobs import repository, work
from service.jobs.lifecycle import RUN_STATUS
from service.jobs.state import State
from service.jobs.work import Work
from trainer.protocol import names

log = structlog.get_logger()

ATTEMPTS = 100
"""Attempts found at a time, at most: the others wait for the next time."""


class Sweeps:
    """All sweeps, each the work of one worker."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    def find(self, _: Session) -> dict[Work, list[str]]:
        """What is swept now and then."""
        return {kind: [""] for kind in (Work.SWEEP_RECORDS, Work.FIND_CHECKPOINTS, Work.SWEEP_RUNS)}

    def ray_records(self, _: Task) -> timedelta:
        """Delete old records of Ray, which keeps one of every job and lists them all in each answer."""
        with self._context.dependencies.ray.call():
            records = self._context.app.ray.submissions()
        limit = self._before(self._context.app.settings.ray_records_kept_s)
        old = {i: r for i, r in records.items() if r.state.ended and r.ended_at and r.ended_at < limit}
        with self._context.app.database.read() as session:
            ours = repository.ended_submissions(session, list(old))
        for identity in ours:
            with self._context.dependencies.ray.call():
                self._context.app.ray.delete(identity)
            log.info("swept_ray_record", submission_id=identity, ended_at=str(old[identity].ended_at))
        return self._interval

    def find_checkpoints(self, _: Task) -> timedelta:
        """Look for attempts that may have left folders without a manifest: checkpoints that they were writing."""
        limit = self._before(self._context.app.settings.unfinished_kept_s)
        with self._context.app.database.read() as session:
            found = repository.unswept(session, limit, ATTEMPTS)
        if found:
            with self._context.write() as session:
                work.add(session, Work.SWEEP_CHECKPOINTS, found)
        return self._interval

    def unfinished_checkpoints(self, task: Task) -> None:
        """Delete an attempt's folders without a manifest."""
        with self._context.app.database.read() as session:
            found = repository.by_submission(session, task.target)
        if found is None:
            return
        job, attempt = found
        self._remove_unfinished(job, attempt)
        with self._context.write() as session:
            row = session.get(Attempt, (job.id, attempt.number))
            if row:
                row.swept_at = now()

    def _remove_unfinished(self, job: Job, attempt: Attempt) -> None:
        for folder in self._context.kinds[job.kind].checkpoint_folders(self._context, job, attempt):
            try:
                self._remove_without_manifest(folder, job_id=job.id, attempt=attempt.number)
            except OutsideRoot as error:  # in a former artifact root: not ours to remove
                log.warning("not_swept", job_id=job.id, attempt=attempt.number, detail=str(error))

    def _remove_without_manifest(self, folder: str, **ids: object) -> None:
        artifacts = self._context.app.artifacts
        with self._context.dependencies.storage.call():
            for name in artifacts.folders(folder):
                if artifacts.file(f"{folder}/{name}", names.MANIFEST) is None:
                    artifacts.delete(f"{folder}/{name}")
                    log.info("swept_unfinished_checkpoint", folder=name, **ids)

    def open_runs(self, _: Task) -> timedelta:
        """Close runs that MLflow shows as running although their job, or their trial's search, has ended or is gone."""
        limit = self._before(self._context.app.settings.unfinished_kept_s)
        with self._context.dependencies.mlflow.call():
            runs = self._context.app.mlflow.open_runs()
        with self._context.app.database.read() as session:
            jobs = repository.jobs_by_id(session, [run.job_id for run in runs])
        for run in runs:
            if not _is_stale(run, jobs.get(run.job_id), limit):
                continue
            # An attempt that starts meanwhile opens its run after this, or its job is seen here.
            with self._context.opening_runs, self._context.dependencies.mlflow.call():
                with self._context.app.database.read() as session:
                    job = session.get(Job, run.job_id)
                if not _is_stale(run, job, limit):
                    continue
                # A trial that had ended would have closed its run, whatever the state of its search.
                status = RUN_STATUS[State(job.state)] if job and not run.trial else "KILLED"
                self._context.app.mlflow.end_run(run.run_id, status)
            log.info("swept_open_run", run_id=run.run_id, job_id=run.job_id, status=status)
        return self._interval

    @property
    def _interval(self) -> timedelta:
        return timedelta(seconds=self._context.app.settings.sweep_interval_s)

    def _before(self, seconds: float) -> datetime:
        return now() - timedelta(seconds=seconds)


def _is_stale(run: OpenRun, job: Job | None, limit: datetime) -> bool:
    if job is None:
        return run.started_at < limit
    return State(job.state).terminal and job.ended_at is not None and job.ended_at < limit

"""Removes deleted jobs and versions. Every step can be repeated after an interruption."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy.orm import Session

from service.controller.context import ControllerContext
from service.controller.queue import GO_ON, Task
from service.controller.versions import remove_version, remove_versions
from service.db.tables import BackboneVersion, Job
from service.jobs import lineage, repository
from service.jobs import versions as registered_versions
from service.jobs.versions import VersionState
from service.jobs.work import Work
from trainer.protocol.names import submission_id

log = structlog.get_logger()


class Removals:
    """What people deleted: rows of the database, each removed by a worker."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    def find(self, session: Session) -> dict[Work, list[str]]:
        """Everything that is deleted and not yet removed."""
        versions = [f"{version.name}/{version.version}" for version in registered_versions.deleting(session)]
        return {Work.REMOVE_JOB: repository.deleted(session), Work.REMOVE_VERSION: versions}

    def job(self, task: Task) -> timedelta | None:
        """Remove everything that a deleted job left, and its row last, so that an interrupted removal is repeated.

        What users see goes first: the registered versions, then what its kind adds, files, the run and Ray's records.
        """
        context = self._context
        with context.app.database.read() as session:
            job = session.get(Job, task.target)
        if job is None or job.deleted_at is None:
            return None
        remove_versions(context, job)
        if not context.kinds[job.kind].remove(context, job, task):
            return GO_ON
        if job.artifact_uri:
            context.delete_files(job.id, job.artifact_uri)
        if job.run_id:
            with context.dependencies.mlflow.call():
                context.app.mlflow.delete_run(job.run_id)
        for number in range(1, job.attempts + 1):
            with context.dependencies.ray.call():
                context.app.ray.delete(submission_id(job.id, number))
        with context.write() as session:
            for reference in lineage.versions(job):  # the job that trained them lists them too
                lineage.drop(session, context.kinds, job.id, reference)
            repository.remove(session, job.id)
        log.info("job_removed", job_id=job.id, run_id=job.run_id)
        return None

    def version(self, task: Task) -> None:
        """Remove a deleted version."""
        name, _, number = task.target.rpartition("/")
        with self._context.app.database.read() as session:
            version = session.get(BackboneVersion, (name, int(number)))
        if version and version.state == VersionState.DELETING:
            remove_version(self._context, version)

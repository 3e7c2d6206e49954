"""Removes deleted jobs and versions. Every step can be repeated after an interruption."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy.orm import Session

from service.backbones.repository import deleted as deleted_versions
from service.backbones.repository import forget
from service.controller.context import ControllerContext
from service.controller.queue import GO_ON, Task
from service.db.tables import DeletedVersion, Job
from service.jobs import lineage, repository
from service.jobs.deletion import versions_of
from service.jobs.schemas import BackboneRef
from service.jobs.work import Work
from trainer.protocol.names import submission_id

log = structlog.get_logger()


class Removals:
    """What people deleted: rows of the database, each removed by a worker."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    def find(self, session: Session) -> dict[Work, list[str]]:
        """Everything that is deleted and not yet removed."""
        versions = [f"{version.name}/{version.version}" for version in deleted_versions(session)]
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
        with context.dependencies.mlflow.call():
            found = versions_of(context.kinds, job, context.app.mlflow)
            versions = [(version, context.app.mlflow.folder(version)) for version in found]
        for version, folder in versions:
            if folder:
                context.delete_files(job.id, folder)
            with context.dependencies.mlflow.call():
                context.app.mlflow.delete_version(version)
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
            version = session.get(DeletedVersion, (name, int(number)))
        if version:
            remove_version(self._context, version)


def remove_version(context: ControllerContext, deleted: DeletedVersion) -> None:
    """Remove a deleted version, and the row that records its deletion last, so that an interrupted removal is repeated.

    The API hides the version from the moment that row exists.
    """
    with context.dependencies.mlflow.call():
        aliases = context.app.mlflow.aliases(deleted.name)
    if deleted.version in aliases.values():  # the alias was set during the deletion
        with context.write() as session:
            forget(session, deleted.name, deleted.version)
        log.warning("version_kept", backbone=deleted.name, version=deleted.version, detail="it has an alias")
        return
    context.delete_files(deleted.job_id, deleted.folder)
    with context.dependencies.mlflow.call():
        for version in context.app.mlflow.versions(deleted.name):
            if (version.version, version.source) == (deleted.version, deleted.source):
                context.app.mlflow.delete_version(version)
    with context.write() as session:
        lineage.drop(session, context.kinds, deleted.job_id, BackboneRef(name=deleted.name, version=deleted.version))
        forget(session, deleted.name, deleted.version)
    log.info("version_removed", backbone=deleted.name, version=deleted.version, job_id=deleted.job_id)

"""Removes deleted jobs and versions. Every step can be repeated after an interruption."""

from __future__ import annotations

import structlog

from service.controller.context import ControllerContext, isolated, isolated_job
from service.controller.versions import remove_version, remove_versions
from service.db.tables import Job
from service.jobs import lineage, repository
from service.jobs import versions as registered_versions
from trainer.protocol.names import submission_id

log = structlog.get_logger()


class Removals:
    """The queue of what people deleted: rows of the database, worked off one after the other."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    def run(self) -> None:
        """Remove everything that is in the queue now; what cannot be removed yet stays in it."""
        with self._context.app.database.read() as session:
            jobs, versions = repository.deleted(session), registered_versions.deleting(session)
        for version in versions:
            with isolated(backbone=version.name, version=version.version, job_id=version.job_id):
                remove_version(self._context, version)
        for job in jobs:
            with isolated_job(job):
                remove(self._context, job)


def remove(context: ControllerContext, job: Job) -> None:
    """Remove everything that a deleted job left, and its row last, so that an interrupted removal is repeated.

    What users see goes first: the registered versions, then what its kind adds, files, the run and Ray's records.
    """
    remove_versions(context, job)
    context.kinds[job.kind].remove(context, job)
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

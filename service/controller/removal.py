"""The removal of deleted jobs and versions by the controller, which survives any interruption."""

from __future__ import annotations

import structlog

from service.backbones.repository import deleted as deleted_versions
from service.backbones.repository import forget
from service.controller.context import ControllerContext, guarded, kept_apart
from service.db.tables import DeletedVersion, Job
from service.jobs import lineage, repository
from service.jobs.deletion import versions_of
from service.jobs.schemas import BackboneRef
from trainer.protocol.names import submission_id

log = structlog.get_logger()


class Removals:
    """The queue of what people deleted: rows of the database, worked off one after the other."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    def run(self) -> None:
        """Remove everything that is in the queue now; what cannot be removed yet stays in it."""
        with self._context.app.database.read() as session:
            jobs, versions = repository.deleted(session), deleted_versions(session)
        for version in versions:
            with kept_apart(backbone=version.name, version=version.version, job_id=version.job_id):
                remove_version(self._context, version)
        for job in jobs:
            with guarded(job):
                remove(self._context, job)


def remove(context: ControllerContext, job: Job) -> None:
    """Everything that a deleted job left, and last of all its row: interrupted, it is done again.

    What people can see goes first: the registered version, then what its kind adds, files, the run, Ray's records.
    """
    with context.needs.mlflow.asked():
        for version in versions_of(context.kinds, job, context.app.mlflow):
            folder = context.app.mlflow.folder(version)
            if folder:
                context.delete_files(job.id, folder)
            context.app.mlflow.delete_version(version)
    context.kinds[job.kind].remove(context, job)
    if job.artifact_uri:
        context.delete_files(job.id, job.artifact_uri)
    if job.run_id:
        with context.needs.mlflow.asked():
            context.app.mlflow.delete_run(job.run_id)
    for number in range(1, job.attempts + 1):
        with context.needs.ray.asked():
            context.app.ray.delete(submission_id(job.id, number))
    with context.write() as session:
        for gone in lineage.of(job):  # where another job trained them, it names them too
            lineage.drop(session, job.id, gone)
        repository.remove(session, job.id)
    log.info("job_removed", job_id=job.id, run_id=job.run_id)


def remove_version(context: ControllerContext, deleted: DeletedVersion) -> None:
    """Everything of a deleted version, and last of all the note of its deletion: interrupted, it is done again.

    Whoever pulls it finds it gone already: what people see goes by that note.
    """
    with context.needs.mlflow.asked():
        aliases = context.app.mlflow.aliases(deleted.name)
    if deleted.version in aliases.values():  # set while it was being deleted
        with context.write() as session:
            forget(session, deleted.name, deleted.version)
        log.warning("version_kept", backbone=deleted.name, version=deleted.version, detail="it has an alias")
        return
    context.delete_files(deleted.job_id, deleted.folder)
    with context.needs.mlflow.asked():
        for version in context.app.mlflow.versions(deleted.name):
            if (version.version, version.source) == (deleted.version, deleted.source):
                context.app.mlflow.delete_version(version)
    with context.write() as session:
        lineage.drop(session, deleted.job_id, BackboneRef(name=deleted.name, version=deleted.version))
        forget(session, deleted.name, deleted.version)
    log.info("version_removed", backbone=deleted.name, version=deleted.version, job_id=deleted.job_id)

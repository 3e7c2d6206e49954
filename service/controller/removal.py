"""Deleting a job: what goes with it, and its removal by the controller, which survives any interruption."""

from __future__ import annotations

import structlog

from service.adapters.mlflow_store import MlflowStore, Version
from service.adapters.storage import Artifacts, OutsideRoot
from service.backbones.repository import forget
from service.controller.context import Control
from service.db.tables import DeletedVersion, Job
from service.jobs import lineage, repository
from service.jobs.schemas import BackboneRef, Deletion
from trainer.protocol.names import STUDY_VARIABLE, submission_id
from trainer.spec.job import Kind

log = structlog.get_logger()


def preview(job: Job, mlflow: MlflowStore, artifacts: Artifacts) -> Deletion:
    """What goes with a job; raises the errors of MLflow and the storage where they do not say."""
    found = versions(job, mlflow)
    trials = mlflow.trial_runs(job.id) if job.kind == Kind.SEARCH else ()
    folders = [
        job.artifact_uri,
        *(mlflow.folder(version) for version in found),
        *(trial.artifact_uri for trial in trials),
    ]
    files = [file for folder in folders if folder for file in _files(artifacts, folder)]
    return Deletion(
        job_id=job.id,
        run_id=job.run_id,
        artifact_uri=job.artifact_uri,
        files=len(files),
        bytes=sum(size for _, size in files),
        backbones=[BackboneRef(name=version.name, version=version.version) for version in found],
    )


def _files(artifacts: Artifacts, folder: str) -> list[tuple[str, int]]:
    try:
        return artifacts.files(folder)
    except OutsideRoot:  # of an artifact root of before, or registered by somebody else: not ours to remove
        return []


def versions(job: Job, mlflow: MlflowStore) -> list[Version]:
    """The registered versions that a job made."""
    name = lineage.register_as(job)
    return mlflow.versions_of_job(name, job.id) if name else []


def remove(control: Control, job: Job) -> None:
    """Everything that a deleted job left, and last of all its row: interrupted, it is done again.

    What people can see goes first: the registered version, then a search's trials, files, the run, Ray's records.
    """
    with control.needs.mlflow.asked():
        for version in versions(job, control.mlflow):
            folder = control.mlflow.folder(version)
            if folder:
                _delete(control, job.id, folder)
            control.mlflow.delete_version(version)
    if job.kind == Kind.SEARCH:
        _remove_trials(control, job.id)
    if job.artifact_uri:
        _delete(control, job.id, job.artifact_uri)
    if job.run_id:
        with control.needs.mlflow.asked():
            control.mlflow.delete_run(job.run_id)
    for number in range(1, job.attempts + 1):
        with control.needs.ray.asked():
            control.ray.delete(submission_id(job.id, number))
    with control.write() as session:
        for gone in lineage.of(job):  # where another job trained them, it names them too
            lineage.drop(session, job.id, gone)
        repository.remove(session, job.id)
    log.info("job_removed", job_id=job.id, run_id=job.run_id)


def _remove_trials(control: Control, job_id: str) -> None:
    """A search's trials: their files and runs, and the study. Jobs that trials were promoted to stay."""
    with control.needs.mlflow.asked():
        runs = control.mlflow.trial_runs(job_id)
    for run in runs:
        _delete(control, job_id, run.artifact_uri)
        with control.needs.mlflow.asked():
            control.mlflow.delete_run(run.run_id)
    if control.studies.named:
        with control.needs.studies.asked():
            control.studies.delete(job_id)
    else:
        log.warning("study_left", job_id=job_id, detail=f"{STUDY_VARIABLE} is not set any more")


def remove_version(control: Control, deleted: DeletedVersion) -> None:
    """Everything of a deleted version, and last of all the note of its deletion: interrupted, it is done again.

    Whoever pulls it finds it gone already: what people see goes by that note.
    """
    with control.needs.mlflow.asked():
        aliases = control.mlflow.aliases(deleted.name)
    if deleted.version in aliases.values():  # set while it was being deleted
        with control.write() as session:
            forget(session, deleted.name, deleted.version)
        log.warning("version_kept", backbone=deleted.name, version=deleted.version, detail="it has an alias")
        return
    _delete(control, deleted.job_id, deleted.folder)
    with control.needs.mlflow.asked():
        for version in control.mlflow.versions(deleted.name):
            if (version.version, version.source) == (deleted.version, deleted.source):
                control.mlflow.delete_version(version)
    with control.write() as session:
        lineage.drop(session, deleted.job_id, BackboneRef(name=deleted.name, version=deleted.version))
        forget(session, deleted.name, deleted.version)
    log.info("version_removed", backbone=deleted.name, version=deleted.version, job_id=deleted.job_id)


def _delete(control: Control, job_id: str, folder: str) -> None:
    try:
        with control.needs.storage.asked():
            control.artifacts.delete(folder)
    except OutsideRoot as error:
        log.warning("files_left", job_id=job_id, detail=str(error))

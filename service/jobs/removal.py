"""Deleting a job: what goes with it, and its removal by the controller, which survives any interruption."""

from __future__ import annotations

import structlog

from service.adapters.mlflow_store import MlflowStore, Version
from service.adapters.storage import Artifacts, OutsideRoot
from service.db import Job
from service.jobs import repository
from service.jobs.control import Control
from service.jobs.schemas import BackboneRef, Deletion
from trainer.spec.job import parse_spec
from trainer.spec.names import submission_id

log = structlog.get_logger()


def preview(job: Job, mlflow: MlflowStore, artifacts: Artifacts) -> Deletion:
    """What goes with a job; raises the errors of MLflow and the storage where they do not say."""
    found = versions(job, mlflow)
    folders = [job.artifact_uri, *(mlflow.folder(version) for version in found)]
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
    name = parse_spec(job.spec).register_as
    version = mlflow.version_of_job(name, job.id) if name else None
    return [version] if version else []


def remove(control: Control, job: Job) -> None:
    """Everything that a deleted job left, and last of all its row: interrupted, it is done again.

    What people can see goes first: the registered version, then files, the run, Ray's records.
    """
    with control.needs.mlflow.asked():
        for version in versions(job, control.mlflow):
            folder = control.mlflow.folder(version)
            if folder:
                _delete(control, job, folder)
            control.mlflow.delete_version(version)
    if job.artifact_uri:
        _delete(control, job, job.artifact_uri)
    if job.run_id:
        with control.needs.mlflow.asked():
            control.mlflow.delete_run(job.run_id)
    for number in range(1, job.attempts + 1):
        with control.needs.ray.asked():
            control.ray.delete(submission_id(job.id, number))
    with control.write() as session:
        repository.remove(session, job.id)
    log.info("job_removed", job_id=job.id, run_id=job.run_id)


def _delete(control: Control, job: Job, folder: str) -> None:
    try:
        with control.needs.storage.asked():
            control.artifacts.delete(folder)
    except OutsideRoot as error:
        log.warning("files_left", job_id=job.id, detail=str(error))

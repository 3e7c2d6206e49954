"""What deleting a job removes."""

from __future__ import annotations

from service.adapters.mlflow_registry import Version
from service.adapters.mlflow_store import MlflowStore
from service.adapters.storage import Artifacts, OutsideRoot
from service.context.app_state import AppState
from service.context.kind import Kinds
from service.db.tables import Job
from service.jobs.schemas import BackboneRef, Deletion
from trainer.spec.job import parse_spec


def preview(app_state: AppState, job: Job) -> Deletion:
    """What deleting a job would remove; raises `MlflowUnreachable` and `StorageUnreachable`."""
    mlflow = app_state.mlflow
    versions = versions_of(app_state.kinds, job, mlflow)
    folders = [
        job.artifact_uri,
        *(mlflow.folder(version) for version in versions),
        *app_state.kinds[job.kind].other_folders(job, mlflow),
    ]
    files = [file for folder in folders if folder for file in _files(app_state.artifacts, folder)]
    return Deletion(
        job_id=job.id,
        run_id=job.run_id,
        artifact_uri=job.artifact_uri,
        files=len(files),
        bytes=sum(size for _, size in files),
        backbones=[BackboneRef(name=version.name, version=version.version) for version in versions],
    )


def versions_of(kinds: Kinds, job: Job, mlflow: MlflowStore) -> list[Version]:
    """The versions that a job registered, as MLflow lists them."""
    name = kinds[job.kind].registers_as(parse_spec(job.spec))
    return mlflow.versions_of_job(name, job.id) if name else []


def _files(artifacts: Artifacts, folder: str) -> list[tuple[str, int]]:
    try:
        return artifacts.files(folder)
    except OutsideRoot:  # in a former artifact root, or registered by another program: not ours to remove
        return []

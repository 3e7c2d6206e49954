"""What deleting a job removes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.adapters.storage import Artifacts, OutsideRoot
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, Job
from service.http.problems import ApiProblem
from service.jobs import aliases, needed, versions
from service.jobs.registering import registered_name
from service.jobs.schemas import BackboneRef, Deletion


def preview(app_state: AppState, job: Job) -> Deletion:
    """What deleting a job would remove; raises `StorageUnreachable`, and for a search `MlflowUnreachable`."""
    with app_state.database.read() as session:
        registered = versions.shown_of_job(session, job.id)
    folders = [
        job.artifact_uri,
        *(version.folder for version in registered),
        *app_state.kinds[job.kind].other_folders(job, app_state.mlflow),
    ]
    files = [file for folder in folders if folder for file in _files(app_state.artifacts, folder)]
    return Deletion(
        job_id=job.id,
        run_id=job.run_id,
        artifact_uri=job.artifact_uri,
        files=len(files),
        bytes=sum(size for _, size in files),
        backbones=_refs(registered),
    )


def delete_versions(session: Session, caller: Caller, job: Job, with_backbones: bool) -> list[BackboneRef]:
    """Delete a job's versions together with the job, in the same transaction; returns them.

    Raises the API's 503 while they are not known, 409 where there is one and ``with_backbones`` is false, or where one
    has an alias or is needed by a job, and 403 where one is the last of somebody else's backbone. One that is gone from
    MLflow counts too: its files may be there, and MLflow may have it again.
    """
    if registered_name(job):
        versions.must_be_read(session)
    registered = versions.shown_of_job(session, job.id)
    going = _refs(registered)
    if going and not with_backbones:
        listed = ", ".join(f"{version.name} version {version.version}" for version in going)
        text = f"deleting {job.id} would delete {listed} too: confirm with with_backbones=true"
        raise ApiProblem(409, "backbones_would_go", text)
    for version in registered:
        if kept := aliases.keeps(session, version):
            raise ApiProblem(409, "version_has_alias", f"deleting {job.id} would delete {version.name} too: {kept}")
        needed.must_not_be(session, version, f"deleting {job.id} would delete {version.name} too: ")
        versions.must_not_be_the_last(session, caller, version)
        versions.delete(session, version, caller.owner)
    return going


def _refs(registered: Sequence[BackboneVersion]) -> list[BackboneRef]:
    return [BackboneRef(name=version.name, version=version.version) for version in registered]


def _files(artifacts: Artifacts, folder: str) -> list[tuple[str, int]]:
    try:
        return artifacts.files(folder)
    except OutsideRoot:  # in a former artifact root, or registered by another program: not ours to remove
        return []

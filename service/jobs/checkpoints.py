"""The committed checkpoints that a job can resume from."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import structlog
from pydantic import ValidationError

from service.adapters.storage import Artifacts
from service.db.tables import Job
from service.jobs.output_schemas import CheckpointView
from service.jobs.progress import steps_per_epoch
from trainer.protocol import names
from trainer.protocol.checkpoint import Manifest, best

log = structlog.get_logger()


class _Committed(NamedTuple):
    path: str
    manifest: Manifest
    size: int
    at: datetime


def checkpoints_of(job: Job, artifacts: Artifacts) -> list[CheckpointView]:
    """The checkpoints that a next attempt could resume from, newest first; damaged ones are named in the log.

    Raises `StorageUnreachable` and `OutsideRoot`.
    """
    committed = _committed(artifacts, job) if job.artifact_uri else []
    best_manifest, per_epoch = (
        best(each.manifest for each in committed),
        steps_per_epoch(job.run_spec, job.dataset_images),
    )
    return [
        CheckpointView(
            attempt=manifest.attempt,
            step=manifest.step,
            epoch=manifest.step / per_epoch if per_epoch else None,
            path=path,
            bytes=sum(record.size for record in manifest.files.values()) + size,
            created_at=at,
            best=manifest is best_manifest,
            metrics=manifest.metrics,
        )
        for path, manifest, size, at in reversed(committed)
    ]


def _committed(artifacts: Artifacts, job: Job) -> list[_Committed]:
    """The sound committed checkpoints of attempts from the job's ``since_attempt`` on, oldest first."""
    folder, found = str(job.artifact_uri), []
    for attempt in _numbers(artifacts.folders(f"{folder}/{names.CHECKPOINTS}"), "a"):
        parent = names.checkpoint_folder(attempt)
        for step in _numbers(artifacts.folders(f"{folder}/{parent}")) if attempt >= job.since_attempt else ():
            path = f"{parent}/{step:08d}"
            file = artifacts.file(folder, f"{path}/{names.MANIFEST}")
            data = artifacts.read(folder, f"{path}/{names.MANIFEST}") if file else None
            if not file or data is None or artifacts.file(folder, f"{path}/{names.DAMAGE}"):
                continue
            try:
                found.append(_Committed(path, Manifest.model_validate_json(data), file.size, file.modified))
            except ValidationError as error:
                log.warning("checkpoint_damaged", job_id=job.id, path=path, detail=error.errors()[0]["msg"])
    return found


def _numbers(folders: list[str], prefix: str = "") -> list[int]:
    ends = [name.removeprefix(prefix) for name in folders if name.startswith(prefix)]
    return sorted(int(end) for end in ends if end.isdecimal())

"""The files that a job leaves for people: embeddings, evaluations, inspections and pictures.

Whoever sees the job sees them. Checkpoints, logs and what attempts tell the service are not among them: logs and
checkpoints have routes of their own, and the rest is nobody else's business.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

from service.adapters.storage import Artifacts, StoredFile
from service.http import paging
from service.http.ranges import MEDIA_TYPE
from service.http.schemas import Page
from service.jobs.output_schemas import JobFileView
from trainer.protocol import names
from trainer.protocol.evaluation import EVALUATION, EVALUATION_FOLDER
from trainer.protocol.inspection import INSPECTION

FOLDERS: Final = (names.EMBEDDINGS, EVALUATION_FOLDER, names.IMAGES)
FILES: Final = (EVALUATION, INSPECTION)
MEDIA_TYPES: Final = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
}
"""By suffix. Anything else is bytes: nothing that a browser would run has a type of its own."""


def media_type(path: str) -> str:
    """The type of a file, by its suffix."""
    return MEDIA_TYPES.get(PurePosixPath(path).suffix.lower(), MEDIA_TYPE)


def find(artifacts: Artifacts, folder: str, path: str) -> StoredFile | None:
    """One of the files; None if there is none, or the path is that of anything else."""
    first, separator, _ = path.partition("/")
    ours = not _is_hidden(path) and (first in FOLDERS if separator else first in FILES)
    return artifacts.file(folder, path) if ours else None


def _is_hidden(path: str) -> bool:
    """Whether it is a file that is being written, or that a process left when it was killed."""
    return any(part.startswith(".") for part in path.split("/"))


def listing(
    artifacts: Artifacts, folder: str | None, job_id: str, prefix: str, limit: int, cursor: str | None
) -> Page[JobFileView]:
    """A page of the files whose paths begin with ``prefix``, sorted by path; empty where the job has no folder yet."""
    found = dict(_all(artifacts, folder, prefix)) if folder else {}
    paths = sorted(found)
    begin = bisect_right(paths, _last_path(cursor)) if cursor else 0
    page = paths[begin : begin + limit]
    return Page[JobFileView](
        items=[_view(job_id, path, found[path]) for path in page],
        next_cursor=paging.write_cursor([page[-1]]) if len(paths) > begin + limit else None,
    )


def _all(artifacts: Artifacts, folder: str, prefix: str) -> Iterator[tuple[str, StoredFile]]:
    for name in FILES:
        file = artifacts.file(folder, name) if name.startswith(prefix) else None
        if file:
            yield name, file
    for name in FOLDERS:
        if f"{name}/".startswith(prefix) or prefix.startswith(f"{name}/"):
            below = artifacts.stored(folder, name)
            yield from (
                (path, file) for path, file in below.items() if path.startswith(prefix) and not _is_hidden(path)
            )


def _view(job_id: str, path: str, file: StoredFile) -> JobFileView:
    return JobFileView(
        path=path,
        bytes=file.size,
        modified_at=file.modified,
        etag=file.etag,
        url=f"/v1/jobs/{job_id}/files/{quote(path)}",
    )


def _last_path(cursor: str) -> str:
    match paging.read_cursor(cursor):
        case [str(path)]:
            return path
    raise paging.bad_cursor(cursor)

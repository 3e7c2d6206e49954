"""The client's methods for the files that a job leaves for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from service.client.download import Progress, fetch_file
from service.client.errors import ClientError, Patience
from service.client.run_files import fetch_files
from service.client.transport import Transport
from service.http.schemas import Page
from service.jobs.output_schemas import JobFileView


class RunFileCalls(Transport):
    """The methods of `Client` for the files of jobs."""

    def files(self, job_id: str, *, prefix: str = "") -> Iterator[JobFileView]:
        """The files that a job leaves for people: embeddings, evaluations, inspections and pictures, by path.

        ``prefix`` is how their paths begin, such as `embeddings/`.
        """
        return self._pages(Page[JobFileView], f"/v1/jobs/{job_id}/files", {"prefix": prefix, "limit": 500})

    def download(self, job_id: str, path: str, to: Path, progress: Progress | None = None) -> int:
        """Download one of a job's `files` as the new file ``to``; returns its size.

        ``progress`` and the errors are as for `download_log`, and `ClientError` if the job has no such file.
        """
        file = next((file for file in self.files(job_id, prefix=path) if file.path == path), None)
        if file is None:
            raise ClientError(
                f"{job_id} has left no file {path!r}: `rcmae jobs files {job_id}` lists those that it has"
            )
        url, patience = f"/v1/jobs/{job_id}/files/{quote(path)}", Patience(self._patience_s, self.url)
        return fetch_file(self._connection, url, to, patience, progress, file.etag, file.bytes)

    def download_files(
        self,
        job_id: str,
        to: Path,
        *,
        prefix: str = "",
        force: bool = False,
        progress: Progress | None = None,
    ) -> list[JobFileView]:
        """Download a job's `files` into the folder ``to``, several at a time; returns them.

        Files that have come before, by size and time of change, are not requested again, and a partial one goes on
        where it ended: repeat the call to get what a running job has left meanwhile. ``progress`` is called with the
        bytes received and the total, from several threads. Raises `FileExistsError` if another file is in the way that
        ``force`` does not allow to replace, and `DownloadError` for a file that cannot be written safely or that is not
        of the size that the service lists.
        """
        found = list(self.files(job_id, prefix=prefix))
        fetch_files(self._connection, job_id, found, to, lambda: Patience(self._patience_s, self.url), progress, force)
        return found

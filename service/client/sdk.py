"""A typed client of the service.

>>> with Client("http://127.0.0.1:8000", token) as client:           # doctest: +SKIP
...     job = client.submit({"kind": "pretrain", "dataset": {"uri": "builtin://digits"}})
...     client.wait(job.id).state
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel

from service.backbones.schemas import BackboneView, VersionView
from service.client.download import Fetcher
from service.client.errors import ApiError, patiently
from service.jobs.schemas import (
    AttemptView,
    Deletion,
    EventView,
    ImageView,
    JobView,
    LogView,
    MetricsView,
    Page,
    PlanView,
    State,
)
from trainer.spec.pretrain import PretrainSpec

Model = TypeVar("Model", bound=BaseModel)
Params = Mapping[str, Any]
Spec = PretrainSpec | Mapping[str, Any]
Resources = Mapping[str, int | Literal["auto"]]
"""Some of a spec's `resources`, such as ``{"workers": 4}``; the others stay."""

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Client:
    """One server, one token. Use it as a context manager, or call `close`.

    Requests that may be repeated (reads, `patch`, and submitting, which carries an idempotency key) are tried again for
    up to ``patience_s`` seconds while the service does not answer, as when it restarts. Raises `ApiError` for an answer
    that is an error, `ConnectionFailed` for none.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 30.0, patience_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            # A proxy from the environment cannot reach this machine's loopback addresses.
            trust_env=httpx.URL(self.url).host not in LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    # -- Jobs

    def submit(self, spec: Spec, idempotency_key: str | None = None) -> JobView:
        """Submit a job. With the key of an earlier submission of the same spec: that job, and nothing is started."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._model(JobView, self._send("POST", "/v1/jobs", json=_as_json(spec), headers=headers, retried=True))

    def plan(self, spec: Spec) -> PlanView:
        """What a spec would need; nothing is started."""
        return self._model(PlanView, self._send("POST", "/v1/jobs/plan", json=_as_json(spec), retried=True))

    def job(self, job_id: str) -> JobView:
        """One job as it is now."""
        return self._get(JobView, f"/v1/jobs/{job_id}")

    def jobs(
        self,
        *,
        states: Sequence[State] = (),
        kind: str | None = None,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        name_contains: str | None = None,
        created_after: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[JobView]:
        """Every job that fits, newest first, asking for page after page as they are taken."""
        filters = {
            "state": [state.value for state in states],
            "kind": kind,
            "owner": owner,
            "label": [f"{name}:{value}" for name, value in (labels or {}).items()],
            "name_contains": name_contains,
            "created_after": created_after.isoformat() if created_after else None,
        }
        return self._pages(Page[JobView], "/v1/jobs", filters | {"limit": page_size})

    def cancel(self, job_id: str) -> JobView:
        """End a job at its next step, with a checkpoint."""
        return self._verb(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        """Stop a job at its next step, with a checkpoint, until it is resumed."""
        return self._verb(job_id, "pause")

    def resume(self, job_id: str, *, resources: Resources | None = None) -> JobView:
        """Queue a paused job again, on other ``resources`` if some are given."""
        return self._verb(job_id, "resume", {"resources": dict(resources)} if resources else None)

    def retry(self, job_id: str, *, from_scratch: bool = False, resources: Resources | None = None) -> JobView:
        """Queue a failed or cancelled job again, from its last checkpoint or ``from_scratch``; as `resume`."""
        body: dict[str, Any] = {"from_scratch": True} if from_scratch else {}
        return self._verb(job_id, "retry", body | ({"resources": dict(resources)} if resources else {}))

    def patch(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        notes: str | None = None,
    ) -> JobView:
        """Change what may be changed about a job; None stays. ``labels`` are all of its labels, not some."""
        given = {"priority": priority, "labels": None if labels is None else dict(labels), "notes": notes}
        body = {name: value for name, value in given.items() if value is not None}
        return self._model(JobView, self._send("PATCH", f"/v1/jobs/{job_id}", json=body, retried=True))

    def deletion_preview(self, job_id: str) -> Deletion:
        """What would go with a job; nothing is deleted."""
        params = {"preview": True}
        return self._model(Deletion, self._send("DELETE", f"/v1/jobs/{job_id}", params=params, retried=True))

    def delete(self, job_id: str, *, with_backbones: bool = False) -> Deletion:
        """Delete a job that has ended, with its run and artifacts.

        The versions that it registered go too, and only ``with_backbones``: without, `ApiError` 409 names them.
        """
        params = {"with_backbones": with_backbones}
        return self._model(Deletion, self._send("DELETE", f"/v1/jobs/{job_id}", params=params))

    def wait(self, job_id: str, *, timeout_s: float | None = None, poll_s: float = 1.0) -> JobView:
        """Until a job has ended, however it did; raises `TimeoutError` after ``timeout_s`` seconds."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if job.state.terminal:
                return job
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(poll_s)

    def spec(self, job_id: str) -> PretrainSpec:
        """The job's spec; submitting it again runs the same."""
        return self._get(PretrainSpec, f"/v1/jobs/{job_id}/spec")

    def events(self, job_id: str) -> Iterator[EventView]:
        """What happened to a job, oldest first."""
        return self._pages(Page[EventView], f"/v1/jobs/{job_id}/events", {})

    def attempts(self, job_id: str) -> list[AttemptView]:
        """A job's attempts, oldest first."""
        return list(self._pages(Page[AttemptView], f"/v1/jobs/{job_id}/attempts", {}))

    def logs(
        self,
        job_id: str,
        *,
        attempt: int | None = None,
        source: str | None = None,
        cursor: str | None = None,
        limit: int = 500,
    ) -> Page[LogView]:
        """Log lines from ``cursor`` on. Its ``next_cursor`` is always there: ask with it again for what came since."""
        params = {"attempt": attempt, "source": source, "cursor": cursor, "limit": limit}
        return self._get(Page[LogView], f"/v1/jobs/{job_id}/logs", params)

    def metrics(self, job_id: str, keys: Sequence[str] = ()) -> MetricsView:
        """Metric curves by optimiser step; all of them without ``keys``."""
        return self._get(MetricsView, f"/v1/jobs/{job_id}/metrics", {"key": list(keys)})

    def images(self, job_id: str) -> list[ImageView]:
        """Pictures of reconstructions, by step."""
        return list(self._pages(Page[ImageView], f"/v1/jobs/{job_id}/images", {}))

    def image(self, job_id: str, name: str) -> bytes:
        """One picture, as PNG."""
        return self._send("GET", f"/v1/jobs/{job_id}/images/{name}", retried=True).content

    # -- Backbones

    def backbones(self) -> Iterator[BackboneView]:
        """Every registered backbone."""
        return self._pages(Page[BackboneView], "/v1/backbones", {})

    def backbone(self, name: str) -> BackboneView:
        """One backbone with the numbers of its versions."""
        return self._get(BackboneView, f"/v1/backbones/{name}")

    def version(self, name: str, version: int | None = None) -> VersionView:
        """One version with its files; the latest without a number."""
        number = self.backbone(name).latest_version if version is None else version
        return self._get(VersionView, f"/v1/backbones/{name}/versions/{number}")

    def pull(
        self,
        name: str,
        out: Path,
        *,
        version: int | None = None,
        folder: str = "hf",
        progress: Callable[[int, int], None] | None = None,
    ) -> VersionView:
        """Download one folder of a version into the new folder ``out``, each file checked against its sha256.

        ``progress`` is told the bytes that have come and the bytes there are. ``out`` appears whole or not at all;
        raises `FileExistsError` where it exists, `DownloadError` for a file that does not match its checksum.
        """
        found = self.version(name, version)
        fetch = Fetcher(self._http, self.url, self._patience_s, progress)
        fetch.folder(found, folder, out)
        return found

    # -- The service itself

    def ready(self) -> bool:
        """Whether the service has everything a job needs. Does not wait for it."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    # -- How it is asked

    def _verb(self, job_id: str, verb: str, body: Mapping[str, Any] | None = None) -> JobView:
        # Not repeated: a job may have moved on between the two, and the second would be refused, or mean another state.
        return self._model(JobView, self._send("POST", f"/v1/jobs/{job_id}/{verb}", json=body or None))

    def _get(self, model: type[Model], path: str, params: Params | None = None) -> Model:
        return self._model(model, self._send("GET", path, params=params, retried=True))

    def _pages(self, page: type[Page[Model]], path: str, params: Params) -> Iterator[Model]:
        cursor: str | None = None
        while True:
            found = self._get(page, path, {**params, "cursor": cursor})
            yield from found.items
            cursor = found.next_cursor
            if cursor is None:
                return

    def _model(self, model: type[Model], response: httpx.Response) -> Model:
        return model.model_validate_json(response.content)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        retried: bool = False,
    ) -> httpx.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None}

        def ask() -> httpx.Response:
            response = self._http.request(method, path, params=given, json=json, headers=dict(headers or {}))
            if response.is_error:
                raise ApiError.of(response)
            return response

        return patiently(ask, self._patience_s if retried else 0.0, self.url)


def _as_json(spec: Spec) -> Any:
    return spec.model_dump(mode="json") if isinstance(spec, PretrainSpec) else dict(spec)

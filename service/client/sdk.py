"""A typed client of the service.

>>> with Client("http://127.0.0.1:8000", token) as client:           # doctest: +SKIP
...     job = client.submit({"kind": "pretrain", "dataset": {"uri": "builtin://digits"}})
...     client.wait(job.id).state
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Unpack

import httpx
from pydantic import RootModel

from service.access.schemas import AuditView, NewTokenView, RoleName, TokenView
from service.client.backbone_calls import BackboneCalls
from service.client.download import Progress, fetch_file
from service.client.errors import ClientError, Patience, with_retries
from service.client.evaluation_calls import EvaluationCalls
from service.client.log_query import LogQuery, log_params
from service.client.run_file_calls import RunFileCalls
from service.client.search_calls import SearchCalls
from service.client.streaming import Stream, Update
from service.client.transport import label_texts, without_none
from service.client.webhook_calls import WebhookCalls
from service.cluster.schemas import ClusterView
from service.http.schemas import Page
from service.jobs.output_schemas import CheckpointView, ImageView, JobsMetricsView, Level, LogPage, MetricsView
from service.jobs.schemas import AttemptView, Deletion, EventView, JobView, PlanView
from service.jobs.state import State
from trainer.spec.base import Document
from trainer.spec.evaluate import Pooling
from trainer.spec.export import FirstVisibility, Network
from trainer.spec.job import JobSpec, Kind, parse_spec

Spec = JobSpec | Mapping[str, Any]
Resources = Mapping[str, int | Literal["auto"]]
"""Some of a spec's `resources`, such as ``{"workers": 4}``; the others stay."""

AWAY_LIMIT_S: Final = 900.0
"""The service may be unreachable for this long while a job is followed: the job runs on without it."""


class _SpecDocument(RootModel[dict[str, Any]]):
    """A spec as the service sends it."""


class Client(BackboneCalls, EvaluationCalls, RunFileCalls, SearchCalls, WebhookCalls):
    """One server, one token. Use it as a context manager, or call `close`.

    Requests that may be repeated (reads, `patch`, `change_search`, `promote`, `revoke_token`, and `submit` and
    `add_trials`, which carry an idempotency key) are retried for up to ``patience_s`` seconds while the service does
    not answer, as when it restarts, or asks for time. The others (verbs, `delete`, creating and rotating tokens) are
    sent once. Raises `ApiError` for an error response, `ConnectionFailed` if there is none.
    """

    # -- Jobs

    def submit(self, spec: Spec, idempotency_key: str | None = None) -> JobView:
        """Submit a job. A repeated submission of the same spec with the same key returns the first one's job."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._request(JobView, "POST", "/v1/jobs", json=_as_json(spec), headers=headers, retried=True)

    def publish(
        self,
        job_id: str,
        name: str,
        *,
        checkpoint: str | None = None,
        export: Mapping[str, Any] | None = None,
    ) -> JobView:
        """Submit a job that registers a kept checkpoint of another job as a version of the backbone ``name``.

        ``checkpoint`` is a `CheckpointView.path`, by default the newest one when the job starts. ``export`` overrides
        `network`, `formats` and `license` of the spec that the checkpoint was trained with.
        """
        spec = {"kind": "publish", "job": job_id, "register_as": name, "checkpoint": checkpoint, "export": export}
        return self.submit(without_none(spec))

    def import_backbone(
        self,
        uri: str,
        name: str,
        *,
        license: str,  # noqa: A002 - the spec's name of it
        origin: Mapping[str, str],
        license_link: str | None = None,
        network: Network | None = None,
        formats: Sequence[str] | None = None,
        visibility: FirstVisibility | None = None,
        num_heads: int | None = None,
        decoder_num_heads: int | None = None,
    ) -> JobView:
        """Submit a job that registers weights from elsewhere as a version of the backbone ``name``.

        ``uri`` is a folder of timm or transformers, or a file of weights, that the service's workers can read.
        ``origin`` has the spec's fields: `name`, and perhaps `url`, `trained_on`, `paper` and `citation`.
        ``license`` may be `unknown`, or `other` with a ``license_link``. By default the version has all formats.
        ``visibility`` is for a new backbone: `owners` for one that its owners alone see. ``num_heads`` and
        ``decoder_num_heads`` are attention heads of encoder and decoder, for weights that do not say.
        """
        spec: dict[str, Any] = {
            "kind": "import",
            "source": without_none({"uri": uri, "num_heads": num_heads, "decoder_num_heads": decoder_num_heads}),
            "register_as": name,
            "origin": dict(origin),
            "license": license,
            "license_link": license_link,
            "export": without_none(
                {"network": network, "formats": formats and list(formats), "visibility": visibility}
            ),
        }
        return self.submit(without_none(spec))

    def embed(
        self,
        backbone: str | Mapping[str, Any],
        dataset: str | Mapping[str, Any],
        *,
        pooling: Pooling = "mean",
        layer: int | Literal["last"] = "last",
        patch_tokens: bool = False,
        **more: Any,
    ) -> JobView:
        """Submit a job that computes a backbone's features of a dataset's images; `download_files` brings its files.

        ``backbone`` is `NAME`, `NAME:3`, `NAME@alias`, or ``{"job": …}`` or ``{"uri": …}`` as in a spec; ``dataset`` a
        URI or a spec's section. ``more`` are other fields of the spec, such as `dtype` or `resources`.
        """
        spec = {"kind": "embed", "backbone": backbone, "features": {"pooling": pooling, "layer": layer}, **more}
        section = {"uri": dataset} if isinstance(dataset, str) else dataset
        return self.submit(spec | {"dataset": section, "patch_tokens": patch_tokens})

    def plan(self, spec: Spec) -> PlanView:
        """What a spec would need; nothing is submitted."""
        return self._request(PlanView, "POST", "/v1/jobs/plan", json=_as_json(spec), retried=True)

    def job(self, job_id: str) -> JobView:
        """One job as it is now."""
        return self._get(JobView, f"/v1/jobs/{job_id}")

    def jobs(
        self,
        *,
        states: Sequence[State] = (),
        kind: Kind | None = None,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        name_contains: str | None = None,
        created_after: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[JobView]:
        """Every job that matches, newest first; pages are requested as they are needed."""
        filters = {
            "state": [state.value for state in states],
            "kind": kind,
            "owner": owner,
            "label": label_texts(labels),
            "name_contains": name_contains,
            "created_after": created_after.isoformat() if created_after else None,
        }
        return self._pages(Page[JobView], "/v1/jobs", filters | {"limit": page_size})

    def cancel(self, job_id: str) -> JobView:
        """Stop a job for good at its next step, with a checkpoint."""
        return self._verb(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        """Stop a job at its next step, with a checkpoint, until it is resumed."""
        return self._verb(job_id, "pause")

    def resume(self, job_id: str, *, resources: Resources | None = None) -> JobView:
        """Queue a paused job again, optionally with other ``resources``."""
        return self._verb(job_id, "resume", {"resources": dict(resources)} if resources else None)

    def retry(self, job_id: str, *, from_scratch: bool = False, resources: Resources | None = None) -> JobView:
        """Queue a failed or cancelled job again, from its last checkpoint or ``from_scratch``, as `resume` does."""
        body: dict[str, Any] = {"from_scratch": True} if from_scratch else {}
        return self._verb(job_id, "retry", body | ({"resources": dict(resources)} if resources else {}))

    def stop(self, job_id: str) -> JobView:
        """Start no more trials; the search ends when its running ones have finished."""
        return self._verb(job_id, "stop")

    def patch(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        notes: str | None = None,
    ) -> JobView:
        """Change a job's priority, labels or notes; None changes nothing. ``labels`` replace all of its labels."""
        body = {"priority": priority, "labels": None if labels is None else dict(labels), "notes": notes}
        return self._request(JobView, "PATCH", f"/v1/jobs/{job_id}", json=without_none(body), retried=True)

    def deletion_preview(self, job_id: str) -> Deletion:
        """What deleting a job would remove; nothing is deleted."""
        return self._request(Deletion, "DELETE", f"/v1/jobs/{job_id}", params={"preview": True}, retried=True)

    def delete(self, job_id: str, *, with_backbones: bool = False) -> Deletion:
        """Delete a job that has ended, with its run and artifacts.

        If it has registered versions, ``with_backbones`` deletes them too; without it, `ApiError` 409 names them.
        """
        return self._request(Deletion, "DELETE", f"/v1/jobs/{job_id}", params={"with_backbones": with_backbones})

    def wait(self, job_id: str, *, timeout_s: float | None = None, poll_s: float = 1.0) -> JobView:
        """Wait until a job has ended, in whatever state; raises `TimeoutError` after ``timeout_s`` seconds.

        The service may be unreachable meanwhile, as for `stream`.
        """
        end = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while True:
            patience_s = min(AWAY_LIMIT_S, end - time.monotonic())
            job = with_retries(lambda: self._request(JobView, "GET", f"/v1/jobs/{job_id}"), patience_s, self.url)
            if job.state.terminal:
                return job
            if time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is {job.state} after {timeout_s:g} s")
            time.sleep(poll_s)

    def stream(
        self,
        job_id: str,
        *,
        logs: bool = False,
        level: Level | None = None,
        attempt: int | None = None,
        source: str | None = None,
        search: str | None = None,
        tail: int | Literal["all"] | None = None,
        once: bool = False,
        away_limit_s: float = AWAY_LIMIT_S,
        tell: Callable[[Exception | None], None] | None = None,
    ) -> Iterator[Update]:
        """Follow a job until it has ended, or with ``once`` up to now.

        Yields a `JobView` at first and after every change, an `EventView` for each event, a `MetricsTick` with the
        newest metrics, and with ``logs`` a `LogBatch` for lines of at least ``level``, of ``attempt``, of ``source``
        (`driver` or `rank-<n>`) and with the text ``search``, beginning with the last ``tail`` of them (100 by default,
        at most 5000, or ``all``).

        No event and no line is lost or repeated when the connection breaks or is silent for 45 s, the service restarts,
        or another replica answers: the next connection continues after the last event. From the second failed try on,
        ``tell`` is called with the reason, and with None when the service is back. Raises `ConnectionFailed` or
        `ApiError` if it is unreachable for longer than ``away_limit_s`` seconds, `ApiError` for a refusal,
        `ClientError` for an answer that is not a stream.
        """
        params = {
            "logs": logs or None,
            "level": level,
            "attempt": attempt,
            "source": source,
            "search": search,
            "tail": tail,
            "once": once or None,
        }
        patience = Patience(away_limit_s, self.url, tell)
        return iter(Stream(self._connection, f"/v1/jobs/{job_id}/stream", without_none(params), patience))

    def spec(self, job_id: str) -> JobSpec:
        """The job's spec; submitting it again runs the same."""
        return parse_spec(self._get(_SpecDocument, f"/v1/jobs/{job_id}/spec").root)

    def events(self, job_id: str) -> Iterator[EventView]:
        """What happened to a job, oldest first."""
        return self._pages(Page[EventView], f"/v1/jobs/{job_id}/events", {})

    def attempts(self, job_id: str) -> list[AttemptView]:
        """A job's attempts, oldest first."""
        return list(self._pages(Page[AttemptView], f"/v1/jobs/{job_id}/attempts", {}))

    def checkpoints(self, job_id: str) -> list[CheckpointView]:
        """The checkpoints that a next attempt could go on from, newest first."""
        return list(self._pages(Page[CheckpointView], f"/v1/jobs/{job_id}/checkpoints", {}))

    def logs(self, job_id: str, **query: Unpack[LogQuery]) -> LogPage:
        """A page of log lines; `LogQuery` says which lines can be asked for.

        While the page's ``more`` is true there is more to read at once. Ask with its ``next_cursor`` as ``cursor``,
        later also for lines that have been written since.
        """
        return self._get(LogPage, f"/v1/jobs/{job_id}/logs", log_params(query))

    def download_log(self, job_id: str, attempt: int, source: str, out: Path, progress: Progress | None = None) -> int:
        """Download one log, as it is now, into the new file ``out``, one JSON object per line; returns its size.

        ``progress`` is called with the bytes received and the total. The download resumes where a connection broke, and
        gives up when nothing has come for ``patience_s`` seconds. ``out`` appears whole or not at all. Raises
        `FileExistsError` if it exists, `DownloadError` if the size is not the one that the service names.
        """
        path = f"/v1/jobs/{job_id}/logs/{attempt}/{source}"
        return fetch_file(self._connection, path, out, Patience(self._patience_s, self.url), progress)

    def metrics(self, job_id: str, keys: Sequence[str] = (), *, points: int | None = None) -> MetricsView:
        """Metric curves by optimiser step, with at most ``points`` points each (1000); all curves without ``keys``.

        In a longer curve, a point stands for several neighbouring steps: their last value, smallest and largest.
        """
        return self._get(MetricsView, f"/v1/jobs/{job_id}/metrics", {"key": list(keys), "points": points})

    def metrics_of(self, job_ids: Sequence[str], keys: Sequence[str], *, points: int | None = None) -> JobsMetricsView:
        """Curves of several jobs in one request, to compare them; see `metrics`."""
        params = {"job": list(job_ids), "key": list(keys), "points": points}
        return self._get(JobsMetricsView, "/v1/metrics", params)

    def images(self, job_id: str) -> list[ImageView]:
        """A job's reconstructions, by step."""
        return list(self._pages(Page[ImageView], f"/v1/jobs/{job_id}/images", {}))

    def image(self, job_id: str, name: str) -> bytes:
        """One image, as PNG."""
        return self._send("GET", f"/v1/jobs/{job_id}/images/{name}", retried=True)

    # -- Tokens and the audit log

    def tokens(self, *, owner: str | None = None) -> Iterator[TokenView]:
        """Tokens without their secrets, newest first: your own, or everybody's for admins."""
        return self._pages(Page[TokenView], "/v1/tokens", {"owner": owner})

    def create_token(
        self,
        role: RoleName,
        *,
        owner: str | None = None,
        name: str = "",
        expires_in_days: int | None = None,
        expires_at: datetime | None = None,
    ) -> NewTokenView:
        """Create a token, by default for yourself and without expiry. Its secret is returned only this once."""
        body = {"role": role, "owner": owner, "name": name, "expires_in_days": expires_in_days}
        end = {"expires_at": expires_at.isoformat() if expires_at else None}
        # Not retried: a lost response had the secret in it, and a second token that nobody knows would be created.
        return self._request(NewTokenView, "POST", "/v1/tokens", json=without_none(body | end))

    def rotate_token(self, token_id: str, *, grace_s: int = 0) -> NewTokenView:
        """Replace a token; the old secret stays valid for ``grace_s`` seconds. Not retried, like `create_token`."""
        return self._request(NewTokenView, "POST", f"/v1/tokens/{token_id}/rotate", json={"grace_s": grace_s})

    def revoke_token(self, token_id: str) -> TokenView:
        """Revoke a token, with immediate effect."""
        return self._request(TokenView, "DELETE", f"/v1/tokens/{token_id}", retried=True)

    def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[AuditView]:
        """Every requested change, newest first; pages are requested as they are needed. For admins."""
        filters = {
            "actor": actor,
            "action": action,
            "target": target,
            "after": after.isoformat() if after else None,
            "before": before.isoformat() if before else None,
        }
        return self._pages(Page[AuditView], "/v1/audit", filters | {"limit": page_size})

    # -- The service itself

    def cluster(self) -> ClusterView:
        """Nodes, running jobs and the queue."""
        return self._get(ClusterView, "/v1/cluster")

    def ready(self) -> bool:
        """Whether the service has everything that a job needs; does not wait for it."""
        try:
            self._connection.request("GET", "/readyz")
        except (httpx.TransportError, ClientError):
            return False
        return True

    def _verb(self, job_id: str, verb: str, body: Mapping[str, Any] | None = None) -> JobView:
        # Not retried: the job may be in another state by then, in which the verb is refused or means something else.
        return self._request(JobView, "POST", f"/v1/jobs/{job_id}/{verb}", json=body or None)


def _as_json(spec: Spec) -> Any:
    return spec.model_dump(mode="json") if isinstance(spec, Document) else dict(spec)

"""The Ray cluster, through its Jobs API."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from trainer.spec.job import ATTEMPT_VARIABLE, AttemptRequest
from trainer.spec.plan import ClusterShape

TIMEOUT_S = 15.0
"""The first submission after Ray has started takes five seconds."""
STOP_WAIT_S = "30"
"""Ray sends SIGKILL this long after SIGTERM."""
LOG_TAIL = 2000


class RayState(StrEnum):
    """What is known of a submission. `unknown` is not `absent`: a cluster out of reach says nothing of its jobs."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    ABSENT = "ABSENT"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in {RayState.SUCCEEDED, RayState.FAILED, RayState.STOPPED}


class ClusterUnreachable(Exception):
    """Ray did not answer."""


class RayCluster:
    """One cluster by the address of its head's dashboard."""

    def __init__(self, url: str, token_file: Path | None, python: str, s3_profile: str | None = None) -> None:
        self._token_file, self._python, self._s3_profile = token_file, python, s3_profile
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._http.close()

    def ping(self) -> None:
        """Raises `ClusterUnreachable` where Ray does not answer."""
        self._call("GET", "/api/version")

    def shape(self) -> ClusterShape:
        """CPUs and GPUs of all living nodes; raises `ClusterUnreachable`."""
        answer = self._call("GET", "/api/v0/nodes?detail=1&limit=10000")
        try:
            nodes = answer.json()["data"]["result"]["result"]
            totals = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterUnreachable(f"{self._http.base_url}: the answer is not Ray's: {answer.text[:200]}") from error
        return ClusterShape(
            cpus=int(sum(total.get("CPU", 0) for total in totals)),
            gpus=int(sum(total.get("GPU", 0) for total in totals)),
        )

    def state(self, submission_id: str) -> RayState:
        """Never raises for a cluster out of reach: that is `UNKNOWN`."""
        try:
            answer = self._send("GET", f"/api/jobs/{submission_id}")
        except ClusterUnreachable:
            return RayState.UNKNOWN
        if answer.status_code == httpx.codes.NOT_FOUND and f"{submission_id} does not exist" in answer.text:
            return RayState.ABSENT  # in Ray's own words: a proxy's 404 says nothing of the job
        if answer.status_code != httpx.codes.OK:
            return RayState.UNKNOWN
        try:
            return RayState(answer.json()["status"])
        except (ValueError, KeyError, TypeError):  # whoever answered, it was not Ray
            return RayState.UNKNOWN

    def submit(self, submission_id: str, request: AttemptRequest) -> None:
        """Start an attempt. An id that exists answers 500, as does much else: ask for its `state` afterwards.

        Raises `ClusterUnreachable` where the answer says nothing.
        """
        variables = {ATTEMPT_VARIABLE: request.model_dump_json(), "RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S}
        if self._s3_profile:
            variables["AWS_PROFILE"] = self._s3_profile
        body = {
            "submission_id": submission_id,
            "entrypoint": f"{self._python} -m trainer.main",
            # Readable in plain text by all who reach Ray: never a secret in here. A profile's name is none.
            "runtime_env": {"env_vars": variables},
            "metadata": {"job_id": request.job_id, "attempt": str(request.attempt)},
        }
        self._call("POST", "/api/jobs/", json=body)

    def stop(self, submission_id: str) -> None:
        """Ask Ray to end a submission; raises `ClusterUnreachable`. One that has ended already is left as it is."""
        self._send("POST", f"/api/jobs/{submission_id}/stop")

    def log_tail(self, submission_id: str) -> str:
        """The end of what the entrypoint printed: the only word of an attempt that could not start."""
        try:
            text = str(self._call("GET", f"/api/jobs/{submission_id}/logs").json().get("logs") or "")
        except ClusterUnreachable as error:
            return f"(its log could not be read: {error})"
        return text.strip()[-LOG_TAIL:]

    def _call(self, method: str, path: str, json: Any = None) -> httpx.Response:
        answer = self._send(method, path, json)
        if answer.is_error:
            raise ClusterUnreachable(f"Ray answered {answer.status_code}: {answer.text.strip()[-500:]}")
        return answer

    def _send(self, method: str, path: str, json: Any = None) -> httpx.Response:
        # Read anew each time: an operator may change the token while the service runs.
        token = self._token_file.read_text().strip() if self._token_file else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return self._http.request(method, path, json=json, headers=headers)
        except httpx.HTTPError as error:
            raise ClusterUnreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error

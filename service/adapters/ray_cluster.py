"""The Ray cluster, through its Jobs and State APIs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import httpx

from service.adapters.breaker import Gated, Unreachable
from trainer.protocol.request import ATTEMPT_VARIABLE, AttemptRequest
from trainer.spec.cluster import ClusterShape, NodeShape

ANSWER_S = 15.0
TIMEOUT = httpx.Timeout(ANSWER_S, connect=3.0)
"""Limits for one request, in seconds. The first submission after a start of Ray takes five seconds."""
STOP_VARIABLES = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
"""Ray stops a submission with SIGINT, which ends the driver at once, and sends SIGKILL 30 s later. On SIGTERM, which
comes from a system that shuts down, the workers would first store a checkpoint."""
LOG_TAIL = 2000
"""Characters of a log that `log_tail` returns at most."""
LOG_LINES = 1000
LOG_BYTES = 2**18
"""As many lines and bytes of a log are looked at for that."""
DRIVER_LOG = "job-driver-{submission_id}.log"
"""Ray's name for the log of a submission's driver, on the driver's node."""
GPU_MODEL = "accelerator_type:"
"""Prefix of the resource whose name says which GPU model a node has."""
REFUSALS = frozenset({400, 404, 409, 422, 500})
"""Statuses that refuse a single request. Ray also responds with 500 to an invalid submission and to a duplicate id."""


class RayState(StrEnum):
    """What is known of a submission. `UNKNOWN` is not `ABSENT`: an unreachable cluster says nothing about its jobs."""

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


@dataclass(frozen=True)
class Submission:
    """Ray's record of a submission, which Ray keeps until it is deleted."""

    state: RayState
    ended_at: datetime | None
    driver: str | None = None
    """Ray's id of the driver; None until the driver has connected."""


@dataclass(frozen=True)
class Machine:
    """One node of the cluster, as Ray describes it."""

    shape: NodeShape
    alive: bool
    """Ray lists dead nodes for a while."""
    message: str = ""
    """Ray's explanation of the state."""
    gpu_model: str | None = None
    """As Ray names it, for example `H100`."""


class ClusterUnreachable(Unreachable):
    """Ray did not respond, or refused the request."""

    dependency: ClassVar[str] = "Ray"


class ClusterRefused(ClusterUnreachable):
    """Ray refused this one request; other requests may succeed."""


class RayCluster(Gated):
    """One Ray cluster, at the address of its head's dashboard."""

    def __init__(self, url: str, token_file: Path | None, python: str, s3_profile: str | None = None) -> None:
        self._token_file, self._python, self._s3_profile = token_file, python, s3_profile
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ping(self) -> None:
        """Raises `ClusterUnreachable` if Ray does not respond."""
        self._call("GET", "/api/version")

    def shape(self) -> ClusterShape:
        """CPUs and GPUs of each live node. Raises `ClusterUnreachable`."""
        return live_shape(self.machines())

    def machines(self) -> list[Machine]:
        """Every node that Ray knows, dead ones included. Raises `ClusterUnreachable`."""
        response = self._call("GET", "/api/v0/nodes?detail=1&limit=10000")
        try:
            return [_machine(node) for node in response.json()["data"]["result"]["result"]]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unexpected(response) from error

    def submissions(self) -> dict[str, Submission]:
        """All submissions that Ray has records of, by id. Raises `ClusterUnreachable`."""
        response = self._call("GET", "/api/jobs/")
        try:
            records = response.json()[:]  # Ray returns a list; slicing anything else raises
            return {record["submission_id"]: _submission(record) for record in records if record["submission_id"]}
        except (ValueError, KeyError, TypeError) as error:
            raise self._unexpected(response) from error

    def placements(self, records: Mapping[str, Submission] | None = None) -> dict[str, list[str]]:
        """The node ids of each submission's workers, one for each worker. Raises `ClusterUnreachable`.

        A submission is left out until Ray has placed its workers. ``records`` are the submissions, if they are known.
        """
        records = self.submissions() if records is None else records
        by_driver = {record.driver: name for name, record in records.items() if record.driver}
        response = self._call("GET", "/api/v0/placement_groups?detail=1&limit=10000")
        placements: dict[str, list[str]] = {}
        try:
            for group in response.json()["data"]["result"]["result"]:
                name = by_driver.get(group["creator_job_id"])
                if name and group["state"] == "CREATED":
                    placements.setdefault(name, []).extend(bundle["node_id"] for bundle in group["bundles"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._unexpected(response) from error
        return placements

    def delete(self, submission_id: str) -> None:
        """Delete Ray's record of a submission that has ended, if there is one.

        Raises `ClusterUnreachable`, also for a submission that still runs: Ray refuses that.
        """
        response = self._send("DELETE", f"/api/jobs/{submission_id}")
        if response.is_error and not _is_absent(response, submission_id):
            raise _error_of(response)

    def state(self, submission_id: str) -> RayState:
        """The state of a submission: `UNKNOWN` if the cluster is unreachable. Never raises."""
        try:
            response = self._send("GET", f"/api/jobs/{submission_id}")
        except ClusterUnreachable:
            return RayState.UNKNOWN
        if _is_absent(response, submission_id):
            return RayState.ABSENT
        if response.status_code != httpx.codes.OK:
            return RayState.UNKNOWN
        try:
            return RayState(response.json()["status"])
        except (ValueError, KeyError, TypeError):  # something other than Ray responded, such as a proxy
            return RayState.UNKNOWN

    def submit(self, submission_id: str, request: AttemptRequest) -> None:
        """Start an attempt. Ray responds with 500 to a duplicate id and to much else: check `state` afterwards.

        Raises `ClusterUnreachable` if Ray did not accept it, or if that is unclear.
        """
        variables = {ATTEMPT_VARIABLE: request.model_dump_json(), **STOP_VARIABLES}
        if self._s3_profile:
            variables["AWS_PROFILE"] = self._s3_profile
        body = {
            "submission_id": submission_id,
            # `exec`: Ray runs this in a shell, which must not end before the driver when both get SIGTERM.
            "entrypoint": f"exec {self._python} -m trainer.main",
            # Everybody who can reach Ray can read this in plain text: it must hold no secret. A profile name is none.
            "runtime_env": {"env_vars": variables},
            "metadata": {"job_id": request.job_id, "attempt": str(request.attempt)},
        }
        self._call("POST", "/api/jobs/", json=body)

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop a submission; nothing happens if it has ended. Raises `ClusterUnreachable`."""
        self._send("POST", f"/api/jobs/{submission_id}/stop")

    def log_tail(self, submission_id: str) -> str:
        """The end of the entrypoint's output, the only evidence of an attempt that could not start. Never raises."""
        try:
            text = self._last_lines(submission_id)
        except ClusterUnreachable as error:
            return f"(its log could not be read: {error})"
        messages = "\n".join(map(_message_of, text.strip().splitlines()))
        if len(messages) <= LOG_TAIL:
            return messages
        tail = messages[-LOG_TAIL:]
        return tail.partition("\n")[2] or tail  # starts at a line's beginning, if the tail has one

    def _last_lines(self, submission_id: str) -> str:
        """The last lines of a submission's log; empty for one that never had a driver.

        The Jobs API sends whole logs, which may be gigabytes, through the head's memory and ours. The State API reads
        the end of the file alone, although a line may still be of any length.
        """
        response = self._call("GET", f"/api/jobs/{submission_id}")
        try:
            node = response.json()["driver_node_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unexpected(response) from error
        if not node:
            return ""
        query = {"node_id": node, "filename": DRIVER_LOG.format(submission_id=submission_id), "lines": LOG_LINES}
        tail, end = bytearray(), time.monotonic() + ANSWER_S
        with self._gate():
            try:
                with self._http.stream("GET", "/api/v0/logs/file", params=query, headers=self._headers()) as response:
                    if response.is_error:
                        response.read()
                        raise _error_of(response)
                    for piece in response.iter_bytes():
                        tail += piece
                        del tail[:-LOG_BYTES]
                        if time.monotonic() > end:
                            raise ClusterUnreachable(f"Ray has not sent it in {ANSWER_S:g} s")
            except httpx.HTTPError as error:
                raise self._no_answer(error) from error
        return tail.decode(errors="replace")

    def _call(self, method: str, path: str, json: Any = None) -> httpx.Response:
        response = self._send(method, path, json)
        if response.is_error:
            raise _error_of(response)
        return response

    def _unexpected(self, response: httpx.Response) -> ClusterUnreachable:
        return ClusterUnreachable(f"{self._http.base_url}: this is not a response of Ray: {response.text[:200]}")

    def _send(self, method: str, path: str, json: Any = None) -> httpx.Response:
        with self._gate():
            try:
                return self._http.request(method, path, json=json, headers=self._headers())
            except httpx.HTTPError as error:
                raise self._no_answer(error) from error

    def _headers(self) -> dict[str, str]:
        # The token is read for each request: an operator may change it while the service runs.
        token = self._token_file.read_text().strip() if self._token_file else None
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _no_answer(self, error: httpx.HTTPError) -> ClusterUnreachable:
        return ClusterUnreachable(f"{self._http.base_url}: {error or type(error).__name__}")


def _is_absent(response: httpx.Response, submission_id: str) -> bool:
    """Whether Ray says so in its own words: a proxy's 404 says nothing about the job."""
    return response.status_code == httpx.codes.NOT_FOUND and f"{submission_id} does not exist" in response.text


def _message_of(line: str) -> str:
    """The message of a JSON line in an attempt's log; other lines unchanged."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return str(record["message"]) if isinstance(record, dict) and "message" in record else line


def _error_of(response: httpx.Response) -> ClusterUnreachable:
    kind = ClusterRefused if response.status_code in REFUSALS else ClusterUnreachable
    return kind(f"Ray answered {response.status_code}: {response.text.strip()[-500:]}")


def live_shape(machines: list[Machine]) -> ClusterShape:
    """CPUs and GPUs of the live nodes."""
    return ClusterShape(tuple(machine.shape for machine in machines if machine.alive))


def _machine(node: dict[str, Any]) -> Machine:
    total = node["resources_total"]
    models = [name.removeprefix(GPU_MODEL) for name in total if name.startswith(GPU_MODEL)]
    return Machine(
        shape=NodeShape(int(total.get("CPU", 0)), int(total.get("GPU", 0)), node["node_id"], node["node_ip"]),
        alive=node["state"] == "ALIVE",
        message=node.get("state_message") or "",
        gpu_model=", ".join(models) or None,
    )


def _submission(record: dict[str, Any]) -> Submission:
    ended = record["end_time"]  # milliseconds
    return Submission(
        state=RayState(record["status"]),
        ended_at=datetime.fromtimestamp(ended / 1000, UTC) if ended else None,
        driver=record["job_id"],
    )

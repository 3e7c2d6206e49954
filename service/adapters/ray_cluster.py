"""The Ray cluster, through its Jobs API."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from trainer.protocol.request import ATTEMPT_VARIABLE, AttemptRequest
from trainer.spec.cluster import ClusterShape, NodeShape

TIMEOUT_S = 15.0
"""The first submission after Ray has started takes five seconds."""
STOP_WAIT_S = "30"
"""Ray sends SIGKILL this long after SIGTERM."""
LOG_TAIL = 2000
GPU_MODEL = "accelerator_type:"
"""Begins the name of a resource that says which GPUs a node has."""
REFUSALS = frozenset({400, 404, 409, 422, 500})
"""Of one request; 500 is also Ray's answer to a submission that it cannot make, and to an id that exists."""


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


@dataclass(frozen=True)
class Submission:
    """Ray's record of a submission, which it keeps for ever unless it is deleted."""

    state: RayState
    ended_at: datetime | None
    driver: str | None = None
    """Ray's own id of the driver; None until that has connected."""


@dataclass(frozen=True)
class Machine:
    """One node of the cluster, as Ray tells of it."""

    shape: NodeShape
    alive: bool
    """Ray tells of dead ones for a while."""
    message: str = ""
    """What Ray says of its state."""
    gpu_model: str | None = None
    """As Ray names it, for example `H100`."""


class ClusterUnreachable(Exception):
    """Ray did not answer, or refused."""


class ClusterRefused(ClusterUnreachable):
    """Ray answered that it will not do this one thing: other requests may be fine."""


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
        """CPUs and GPUs of each living node; raises `ClusterUnreachable`."""
        return living(self.machines())

    def machines(self) -> list[Machine]:
        """Every node that Ray knows of; raises `ClusterUnreachable`."""
        answer = self._call("GET", "/api/v0/nodes?detail=1&limit=10000")
        try:
            return [_machine(node) for node in answer.json()["data"]["result"]["result"]]
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_rays(answer) from error

    def submissions(self) -> dict[str, Submission]:
        """All submissions that Ray keeps records of, by id; raises `ClusterUnreachable`."""
        answer = self._call("GET", "/api/jobs/")
        try:
            records = answer.json()[:]  # an object, which is none of Ray's answers here, has no slices
            return {record["submission_id"]: _submission(record) for record in records if record["submission_id"]}
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_rays(answer) from error

    def placements(self) -> dict[str, list[str]]:
        """The nodes of each submission's workers, one for each worker; raises `ClusterUnreachable`.

        A submission whose workers Ray has not placed is left out.
        """
        submitted = {record.driver: name for name, record in self.submissions().items() if record.driver}
        answer = self._call("GET", "/api/v0/placement_groups?detail=1&limit=10000")
        found: dict[str, list[str]] = {}
        try:
            for group in answer.json()["data"]["result"]["result"]:
                name = submitted.get(group["creator_job_id"])
                if name and group["state"] == "CREATED":
                    found.setdefault(name, []).extend(bundle["node_id"] for bundle in group["bundles"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_rays(answer) from error
        return found

    def delete(self, submission_id: str) -> None:
        """Forget a submission that has ended; one that is gone already is no error.

        Raises `ClusterUnreachable`, also for a submission that still runs: Ray refuses that.
        """
        answer = self._send("DELETE", f"/api/jobs/{submission_id}")
        if answer.is_error and not _is_absent(answer, submission_id):
            raise _refused(answer)

    def state(self, submission_id: str) -> RayState:
        """Never raises for a cluster out of reach: that is `UNKNOWN`."""
        try:
            answer = self._send("GET", f"/api/jobs/{submission_id}")
        except ClusterUnreachable:
            return RayState.UNKNOWN
        if _is_absent(answer, submission_id):
            return RayState.ABSENT
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
        lines = text.strip().splitlines()[-LOG_TAIL:]  # more than that many never fit
        told = "\n".join(map(_for_people, lines))
        if len(told) <= LOG_TAIL:
            return told
        cut = told[-LOG_TAIL:]
        return cut.partition("\n")[2] or cut  # from the beginning of a line, where there is one

    def _call(self, method: str, path: str, json: Any = None) -> httpx.Response:
        answer = self._send(method, path, json)
        if answer.is_error:
            raise _refused(answer)
        return answer

    def _not_rays(self, answer: httpx.Response) -> ClusterUnreachable:
        return ClusterUnreachable(f"{self._http.base_url}: the answer is not Ray's: {answer.text[:200]}")

    def _send(self, method: str, path: str, json: Any = None) -> httpx.Response:
        # Read anew each time: an operator may change the token while the service runs.
        token = self._token_file.read_text().strip() if self._token_file else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return self._http.request(method, path, json=json, headers=headers)
        except httpx.HTTPError as error:
            raise ClusterUnreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error


def _is_absent(answer: httpx.Response, submission_id: str) -> bool:
    """In Ray's own words: a proxy's 404 says nothing of the job."""
    return answer.status_code == httpx.codes.NOT_FOUND and f"{submission_id} does not exist" in answer.text


def _for_people(line: str) -> str:
    """What a line of an attempt's own log says, without what is there for programs; other lines as they are."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    return str(found["message"]) if isinstance(found, dict) and "message" in found else line


def _refused(answer: httpx.Response) -> ClusterUnreachable:
    kind = ClusterRefused if answer.status_code in REFUSALS else ClusterUnreachable
    return kind(f"Ray answered {answer.status_code}: {answer.text.strip()[-500:]}")


def living(machines: list[Machine]) -> ClusterShape:
    """CPUs and GPUs of those that are alive."""
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

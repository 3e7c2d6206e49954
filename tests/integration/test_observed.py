"""One id from a request to every rank, and what the metrics say of a job while it runs and when it has ended."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx
from live import artifacts, make_spec, poll, wait_state
from local_stack import Stack
from prometheus_client.parser import text_string_to_metric_families

from service.jobs.state import State

Labels = frozenset[tuple[str, str]]


def metrics(stack: Stack) -> dict[tuple[str, Labels], float]:
    answer = httpx.get(f"{stack.url}/metrics", trust_env=False)
    assert answer.status_code == 200
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def named(text: str, request_id: str) -> list[dict[str, Any]]:
    """The lines of a log, one JSON object each, that carry the id; lines of others may be no JSON."""
    return [json.loads(line) for line in text.splitlines() if request_id in line]


def test_one_id_is_found_everywhere_and_the_metrics_tell_of_the_job(stack):
    before, request_id = metrics(stack), f"observed-{secrets.token_hex(6)}"
    answer = httpx.post(
        f"{stack.url}/v1/jobs",
        json=make_spec(name="observed", optimization={"epochs": 30}),
        headers={"Authorization": f"Bearer {stack.token}", "X-Request-ID": request_id},
        trust_env=False,
    )
    assert (answer.status_code, answer.headers["x-request-id"]) == (201, request_id)
    job_id = answer.json()["id"]
    of_job = frozenset({("job_id", job_id)})
    running = poll(lambda: metrics(stack), lambda seen: ("rcmae_job_images_per_second", of_job) in seen, 300)
    assert running["rcmae_job_images_per_second", of_job] > 0
    assert running["rcmae_job_loss", of_job] > 0
    job = wait_state(stack, job_id, State.SUCCEEDED, timeout_s=300)

    after = metrics(stack)
    assert not [name for name, labels in after if labels & of_job]

    def more(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before.get(key, 0)

    for begin, end in (("queued", "starting"), ("starting", "running"), ("running", "succeeded")):
        assert more("rcmae_job_transitions_total", **{"from": begin, "to": end}, reason="none") == 1
    assert more("rcmae_attempts_ended_total", state="succeeded", reason="none") == 1
    assert more("rcmae_api_request_seconds_count", method="POST", route="/v1/jobs", status="2xx") == 1
    assert more("rcmae_api_request_seconds_count", method="GET", route="/v1/jobs/{job_id}", status="2xx") > 0
    assert more("rcmae_jobs", state="succeeded", kind="pretrain") == 1
    assert more("rcmae_reconcile_round_seconds_count") > 0
    assert after["rcmae_lease_held", frozenset()] == after["rcmae_database_up", frozenset()] == 1

    service = named(stack.folder.log_of("api").read_text(), request_id)
    request, *rest = service
    assert (request["event"], request["route"], request["status"], request["owner"]) == (
        "request", "/v1/jobs", 201, "admin"
    )  # fmt: skip
    assert [line["state"] for line in rest if line["event"] == "job_moved"] == ["starting", "running", "succeeded"]
    assert {line["event"] for line in rest} >= {"job_moved", "attempt_submitted", "attempt_ended"}
    assert {(line["job_id"], line.get("attempt", 1)) for line in rest} == {(job_id, 1)}

    logs = artifacts(stack, job) / "attempts/1/logs"
    for source in ("driver", "rank-0", "rank-1"):
        first = json.loads((logs / f"{source}.0001.jsonl").read_text().splitlines()[0])
        assert first["message"] == f"Attempt 1 of {job_id} begins, submitted by request {request_id}"

    errors = [named(file.read_text(errors="replace"), request_id) for file in sessions(stack)]
    said = [line for lines in errors for line in lines]
    assert {line["source"] for line in said} == {"driver", "rank-0", "rank-1"}
    assert {(line["job_id"], line["attempt"]) for line in said} == {(job_id, 1)}
    assert any("Evaluation at step" in line["message"] for line in said)


def sessions(stack: Stack) -> list[Path]:
    """Where Ray keeps what drivers and workers print."""
    logs = stack.state.temp_dir / "ray/session_latest/logs"
    return [*logs.glob("job-driver-*.log"), *logs.glob("worker-*.err")]

"""The OpenAPI description of the jobs' routes, and their error codes."""

from __future__ import annotations

from typing import Final

from service.http.openapi import RANGE_HEADERS, Operation, file_answers

PNG: Final = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
EVENT: Final = {
    "type": "object",
    "properties": {
        "event": {
            "type": "string",
            "description": "`job`, `event`, `metrics`, `log` or `end`; on the stream of all jobs `jobs`.",
        },
        "id": {"type": "string", "description": "Send it as `Last-Event-ID` to continue from there."},
        "data": {"type": "string", "description": "JSON."},
    },
}
EVENTS: Final = {"text/event-stream": {"schema": EVENT}}
LINES: Final = {"application/x-ndjson": {"schema": {"type": "string"}}}
LOCATION: Final = {"Location": {"description": "Path of the job.", "schema": {"type": "string"}}}


CONTROL: Final = ("forbidden", "job_not_found", "not_allowed_in_state")
BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
FILE: Final = ("job_not_found", "file_not_found", "artifacts_not_here")
LOG: Final = ("job_not_found", "log_not_found", "artifacts_not_here")

CODES: Final[dict[str, tuple[int, str]]] = {
    "job_not_found": (404, "no such job exists"),
    "log_not_found": (404, "this attempt has no log of this source"),
    "image_not_found": (404, "the job or trial has no such image"),
    "file_not_found": (404, "the version has no such file, or the job has left none of this name for people"),
    "artifacts_not_here": (404, "the job's files are outside the artifact root, which has changed since"),
    "not_allowed_in_state": (409, "the state of the job or trial does not allow it"),
    "not_for_this_kind": (409, "the operation does not apply to this kind of job"),
    "backbones_would_go": (409, "registered versions would be deleted too: confirm with `with_backbones=true`"),
    "job_needed": (409, "another job, which has not ended, needs the job: wait for its end, or pause or cancel it"),
    "idempotency_key_reused": (422, "the key was used before, for another spec or for other trials"),
}
"""Status and meaning of each error code."""

OPERATIONS: Final[dict[str, Operation]] = {
    "POST /v1/jobs": Operation(
        "submit_job",
        ("forbidden", "idempotency_key_reused"),
        {
            200: {"description": "The job that was submitted with this key before.", "headers": LOCATION},
            201: {"description": "A new job.", "headers": LOCATION},
        },
    ),
    "POST /v1/jobs/plan": Operation("plan_job"),
    "GET /v1/jobs": Operation("list_jobs"),
    "GET /v1/jobs/{job_id}": Operation("get_job", ("job_not_found",)),
    "PATCH /v1/jobs/{job_id}": Operation("change_job", CONTROL),
    "DELETE /v1/jobs/{job_id}": Operation(
        "delete_job",
        (*CONTROL, "artifacts_not_here", "backbones_would_go", "version_has_alias", "version_needed", "job_needed"),
    ),
    "GET /v1/jobs/{job_id}/spec": Operation("get_job_spec", ("job_not_found",)),
    "POST /v1/jobs/{job_id}/cancel": Operation("cancel_job", CONTROL),
    "POST /v1/jobs/{job_id}/pause": Operation("pause_job", CONTROL),
    "POST /v1/jobs/{job_id}/resume": Operation("resume_job", CONTROL),
    "POST /v1/jobs/{job_id}/retry": Operation("retry_job", CONTROL),
    "POST /v1/jobs/{job_id}/stop": Operation("stop_job", (*CONTROL, "not_for_this_kind")),
    "GET /v1/jobs/{job_id}/events": Operation("list_job_events", ("job_not_found",)),
    "GET /v1/jobs/{job_id}/attempts": Operation("list_job_attempts", ("job_not_found",)),
    "GET /v1/jobs/{job_id}/logs": Operation("list_job_logs", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/logs/{attempt}/{source}": Operation(
        "download_job_log", LOG, file_answers(LINES), RANGE_HEADERS
    ),
    "HEAD /v1/jobs/{job_id}/logs/{attempt}/{source}": Operation("check_job_log", LOG, file_answers({}), RANGE_HEADERS),
    "GET /v1/jobs/{job_id}/stream": Operation(
        "follow_job", ("job_not_found",), {200: {"description": "Server-sent events.", "content": EVENTS}}
    ),
    "GET /v1/stream": Operation("hear_jobs", (), {200: {"description": "Server-sent events.", "content": EVENTS}}),
    "GET /v1/jobs/{job_id}/metrics": Operation("get_job_metrics", ("job_not_found",)),
    "GET /v1/metrics": Operation("compare_metrics", ("job_not_found",)),
    "GET /v1/jobs/{job_id}/checkpoints": Operation("list_job_checkpoints", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/images": Operation("list_job_images", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/images/{name}": Operation(
        "get_job_image",
        ("job_not_found", "image_not_found", "artifacts_not_here"),
        {200: {"description": "The image.", "content": PNG}},
    ),
    "GET /v1/jobs/{job_id}/files": Operation("list_job_files", ("job_not_found", "artifacts_not_here")),
    "GET /v1/jobs/{job_id}/files/{path}": Operation("download_job_file", FILE, file_answers(BYTES), RANGE_HEADERS),
    "HEAD /v1/jobs/{job_id}/files/{path}": Operation("check_job_file", FILE, file_answers({}), RANGE_HEADERS),
}
"""One entry for each route."""

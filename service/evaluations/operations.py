"""Descriptions of the routes of evaluations for `/openapi.json`, and their error codes."""

from __future__ import annotations

from typing import Final

from service.http.openapi import Operation

CODES: Final[dict[str, tuple[int, str]]] = {
    "evaluation_not_found": (404, "no job of this id has succeeded with an evaluation that the caller sees"),
}
"""The status and the cause of each error."""

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/evaluations": Operation("list_evaluations"),
    "GET /v1/evaluations/table": Operation("get_evaluation_table"),
    "GET /v1/evaluations/{job_id}": Operation("get_evaluation", ("evaluation_not_found",)),
}
"""One entry for each route."""

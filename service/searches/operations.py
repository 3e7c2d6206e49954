"""The OpenAPI description of the searches' routes, and their error codes."""

from __future__ import annotations

from typing import Final

from service.http.openapi import Operation
from service.jobs.operations import LOCATION, PNG

CSV: Final = {"text/csv": {"schema": {"type": "string"}}}
SEARCH: Final = ("job_not_found", "not_for_this_kind")
TRIAL: Final = (*SEARCH, "trial_not_found")

CODES: Final[dict[str, tuple[int, str]]] = {
    "trial_not_found": (404, "the search has no such trial"),
    "budget_spent": (409, "the search's budget has no room for so many trials: set `beyond_budget`"),
    "trial_not_settled": (409, "the trial's values are invalid, or not all known before it starts"),
}
"""Status and meaning of each error code."""

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/searches/{search_id}": Operation("get_search", SEARCH),
    "PATCH /v1/searches/{search_id}": Operation("change_search", ("forbidden", *SEARCH)),
    "GET /v1/searches/{search_id}/trials": Operation("list_trials", SEARCH),
    "POST /v1/searches/{search_id}/trials": Operation(
        "add_trials",
        ("forbidden", *SEARCH, "not_allowed_in_state", "budget_spent", "idempotency_key_reused"),
        {
            200: {"description": "The trials that were added with this key before."},
            201: {"description": "New trials, which wait."},
        },
    ),
    "GET /v1/searches/{search_id}/trials.csv": Operation(
        "download_trials", SEARCH, {200: {"description": "A header, and one line for each trial.", "content": CSV}}
    ),
    "GET /v1/searches/{search_id}/trials/{number}": Operation("get_trial", TRIAL),
    "POST /v1/searches/{search_id}/trials/{number}/stop": Operation(
        "stop_trial", ("forbidden", *TRIAL, "not_allowed_in_state")
    ),
    "POST /v1/searches/{search_id}/trials/{number}/retry": Operation(
        "retry_trial", ("forbidden", *TRIAL, "not_allowed_in_state")
    ),
    "POST /v1/searches/{search_id}/trials/{number}/promote": Operation(
        "promote_trial",
        ("forbidden", *TRIAL, "trial_not_settled"),
        {
            200: {"description": "The job that the same promotion created before.", "headers": LOCATION},
            201: {"description": "A new job.", "headers": LOCATION},
        },
    ),
    "GET /v1/searches/{search_id}/trials/{number}/logs": Operation("list_trial_logs", (*TRIAL, "artifacts_not_here")),
    "GET /v1/searches/{search_id}/trials/{number}/metrics": Operation("get_trial_metrics", TRIAL),
    "GET /v1/searches/{search_id}/trials/{number}/images": Operation(
        "list_trial_images", (*TRIAL, "artifacts_not_here")
    ),
    "GET /v1/searches/{search_id}/trials/{number}/images/{name}": Operation(
        "get_trial_image",
        (*TRIAL, "image_not_found", "artifacts_not_here"),
        {200: {"description": "The image.", "content": PNG}},
    ),
    "GET /v1/searches/{search_id}/plots/{name}": Operation("get_search_plot", SEARCH),
}
"""One entry for each route."""

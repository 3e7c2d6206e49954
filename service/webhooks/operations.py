"""Descriptions of the routes of webhooks for `/openapi.json`, and their error codes."""

from __future__ import annotations

from typing import Final

from service.http.openapi import Operation

CODES: Final[dict[str, tuple[int, str]]] = {
    "webhook_not_found": (404, "there is no such webhook, or it is somebody else's"),
    "delivery_not_found": (404, "the webhook has no such delivery, or no longer has it"),
    "too_many_webhooks": (409, "its owner has as many webhooks as one may have"),
}
"""The status and the cause of each error."""

ONE: Final = ("forbidden", "webhook_not_found")

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/webhooks": Operation("list_webhooks", ("forbidden",)),
    "POST /v1/webhooks": Operation("create_webhook", ("forbidden", "too_many_webhooks")),
    "GET /v1/webhooks/{webhook_id}": Operation("get_webhook", ONE),
    "PATCH /v1/webhooks/{webhook_id}": Operation("change_webhook", ONE),
    "DELETE /v1/webhooks/{webhook_id}": Operation("delete_webhook", ONE),
    "POST /v1/webhooks/{webhook_id}/rotate": Operation("rotate_webhook", ONE),
    "POST /v1/webhooks/{webhook_id}/test": Operation("test_webhook", ONE),
    "GET /v1/webhooks/{webhook_id}/deliveries": Operation("list_webhook_deliveries", ONE),
    "GET /v1/webhooks/{webhook_id}/deliveries/{delivery_id}": Operation(
        "get_webhook_delivery", (*ONE, "delivery_not_found")
    ),
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry": Operation(
        "retry_webhook_delivery", (*ONE, "delivery_not_found")
    ),
}
"""One entry for each route."""

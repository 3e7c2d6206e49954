"""Descriptions of the token and audit log routes for `/openapi.json`, and their error codes."""

from __future__ import annotations

from typing import Final

from service.http.openapi import Operation

CODES: Final[dict[str, tuple[int, str]]] = {
    "forbidden": (403, "the token's role does not allow it, or the job is somebody else's"),
    "token_not_found": (404, "there is no such token, or it is somebody else's"),
    "token_ended": (409, "the token has expired or was revoked"),
    "last_admin": (409, "it is the last admin token that does not expire"),
}
"""The status and the cause of each error."""

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/tokens": Operation("list_tokens", ("forbidden",)),
    "POST /v1/tokens": Operation("create_token", ("forbidden",)),
    "POST /v1/tokens/{token_id}/rotate": Operation("rotate_token", ("forbidden", "token_not_found", "token_ended")),
    "DELETE /v1/tokens/{token_id}": Operation("revoke_token", ("forbidden", "token_not_found", "last_admin")),
    "GET /v1/audit": Operation("list_audit", ("forbidden",)),
}
"""One entry for each route."""

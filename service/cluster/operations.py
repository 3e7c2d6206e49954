"""The route of the cluster as `/openapi.json` describes them, and the errors of their own."""

from __future__ import annotations

from typing import Final

from service.http.openapi import Operation

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/cluster": Operation("get_cluster"),
}
"""One row a route."""

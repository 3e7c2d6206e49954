"""The description of the cluster route for `/openapi.json`."""

from __future__ import annotations

from typing import Final

from service.http.openapi import Operation

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/cluster": Operation("get_cluster"),
}
"""One entry for each route."""

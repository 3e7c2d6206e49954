"""Cursors of lists."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from service.http.problems import ApiProblem


def utc(moment: datetime) -> datetime:
    """Without a zone it is UTC; raises the API's 422 where UTC has no such year."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ApiProblem(422, "parameter_invalid", f"{moment.isoformat()} is out of range") from error


def write_cursor(parts: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> list[Any]:
    """The parts a cursor was made of; raises the API's 422 for anything else."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError) as error:
        raise bad_cursor(cursor) from error
    if not isinstance(parts, list):
        raise bad_cursor(cursor)
    return parts


def read_moment(cursor: str) -> tuple[datetime, str]:
    """The moment and the id that a cursor holds; raises the API's 422 for anything else."""
    parts = read_cursor(cursor)
    try:
        return utc(datetime.fromisoformat(parts[0])), str(parts[1])
    except (ValueError, TypeError, IndexError) as error:
        raise bad_cursor(cursor) from error


def read_number(cursor: str) -> int:
    """The row's number that a cursor holds; raises the API's 422 for anything else."""
    match read_cursor(cursor):
        case [int(number)] if 0 <= number < 2**63:
            return number
    raise bad_cursor(cursor)


def bad_cursor(cursor: str) -> ApiProblem:
    return ApiProblem(422, "parameter_invalid", f"cursor: {cursor!r} is not one this service gave")

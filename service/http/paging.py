"""Cursors of paginated lists."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from service.http.problems import ApiProblem


def utc(moment: datetime) -> datetime:
    """A moment in UTC; one without a time zone counts as UTC. Raises the API's 422 if it is out of range in UTC."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ApiProblem(422, "parameter_invalid", f"{moment.isoformat()} is out of range") from error


def write_cursor(values: list[Any]) -> str:
    """An opaque cursor that `read_cursor` decodes into the same values."""
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> list[Any]:
    """The values a cursor was made of. Raises the API's 422 if it is malformed."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError) as error:
        raise bad_cursor(cursor) from error
    if not isinstance(values, list):
        raise bad_cursor(cursor)
    return values


def read_moment(cursor: str) -> tuple[datetime, str]:
    """The moment and the id in a cursor. Raises the API's 422 if it holds anything else."""
    values = read_cursor(cursor)
    try:
        return utc(datetime.fromisoformat(values[0])), str(values[1])
    except (ValueError, TypeError, IndexError) as error:
        raise bad_cursor(cursor) from error


def read_number(cursor: str) -> int:
    """The row number in a cursor. Raises the API's 422 if it holds anything else."""
    match read_cursor(cursor):
        case [int(number)] if 0 <= number < 2**63:
            return number
    raise bad_cursor(cursor)


def read_value(value: float, cursor: str) -> float:
    """A number out of a cursor. Raises the API's 422 if it is larger than any value that lists are sorted by."""
    try:
        return float(value)
    except OverflowError as error:
        raise bad_cursor(cursor) from error


def bad_cursor(cursor: str) -> ApiProblem:
    return ApiProblem(422, "parameter_invalid", f"cursor: {cursor!r} is not a cursor of this service")

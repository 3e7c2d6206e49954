"""The query of a page of log lines, of a job or of a trial."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from service.jobs.output_schemas import Level

PAGE_SIZE: Final = 500


class LogQuery(TypedDict, total=False):
    """Which lines, and where the page begins: at ``cursor``, at the last ``tail`` lines, or else at the first one."""

    attempt: int | None
    source: str | None
    """`driver` or `rank-<n>`."""
    level: Level | None
    """The lowest level."""
    search: str | None
    """Text that the lines contain."""
    tail: int | None
    cursor: str | None
    """A page's ``next_cursor``."""
    limit: int


def log_params(query: LogQuery) -> dict[str, Any]:
    """As the request's parameters. Raises `TypeError` for a misspelt name: the service would ignore it."""
    if unknown := query.keys() - LogQuery.__annotations__.keys():
        known = ", ".join(LogQuery.__annotations__)
        raise TypeError(f"log lines cannot be asked for by {', '.join(sorted(unknown))}; the names are {known}")
    return {"limit": PAGE_SIZE, **query}

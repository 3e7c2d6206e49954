"""Passes over registered versions that lack something, a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from sqlalchemy import Select

from service.controller.context import ControllerContext
from service.controller.queue import GO_ON, Task
from service.db.tables import BackboneVersion
from service.jobs import versions

BATCH: Final = 50
"""Versions that are worked on before others may have the worker."""


def over_versions(
    context: ControllerContext,
    task: Task,
    query: Select[BackboneVersion],
    work: Callable[[BackboneVersion], None],
) -> timedelta:
    """Do ``work`` for the next versions of ``query`` after the task's cursor; returns the pause before more.

    What still lacks something after that is tried again in the next pass.
    """
    with context.app.database.read() as session:
        found = versions.following(session, query, _after(task.cursor), BATCH)
    for version in found:
        work(version)
        task.cursor = f"{version.name}/{version.version}"
    if len(found) == BATCH:
        return GO_ON
    task.cursor = ""
    return timedelta(seconds=context.app.settings.sweep_interval_s)


def _after(cursor: str) -> tuple[str, int]:
    name, _, number = cursor.rpartition("/")
    return name, int(number or 0)

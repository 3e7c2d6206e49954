"""Applies the retention rules of backbones: says when versions go, and deletes those whose time has come."""

from __future__ import annotations

from datetime import timedelta

import structlog

from service.backbones import retention
from service.controller.context import ControllerContext
from service.controller.queue import GO_ON, Task

log = structlog.get_logger()


def expire_versions(context: ControllerContext, task: Task) -> timedelta:
    """Apply the rules of the backbones after the task's cursor; returns the pause before the next ones."""
    with context.app.database.read() as session:
        names = retention.ruled(session, task.cursor)
    for name in names:
        _expire(context, name)
        task.cursor = name
        if task.pauses:
            return GO_ON
    task.cursor = ""
    return timedelta(seconds=context.app.settings.sweep_interval_s)


def _expire(context: ControllerContext, name: str) -> None:
    """Apply one rule. It is only read at first, since there is hardly ever anything to do."""
    with context.app.database.read() as session:
        waits = retention.to_write(session, context.app, name)
    while waits:
        with context.write() as session:
            deleted = retention.expire(session, context.app, name)
        for row, why in deleted:
            log.info("version_expired", backbone=name, version=row.version, job_id=row.job_id, why=why)
        waits = len(deleted) == retention.AT_ONCE

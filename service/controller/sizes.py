"""Adds up the bytes of registered versions: of new ones at once, and of those from before sizes were kept.

The files of a version never change, so that once is enough.
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from service.adapters.storage import OutsideRoot
from service.backbones import space
from service.controller.context import ControllerContext
from service.controller.dependencies import Refused
from service.controller.passes import over_versions
from service.controller.queue import Task
from service.db.tables import BackboneVersion

log = structlog.get_logger()


def measure_versions(context: ControllerContext, task: Task) -> timedelta:
    """Measure the next versions of unknown size; returns the pause before more. Raises `Unavailable`.

    A version without files is looked at again in the next pass: a backup may bring them back.
    """
    return over_versions(context, task, space.unmeasured(), lambda version: _measure(context, version))


def _measure(context: ControllerContext, version: BackboneVersion) -> None:
    try:
        with context.dependencies.storage.call():
            files = context.app.artifacts.files(version.folder or "")
    except OutsideRoot:
        return
    except Refused as error:  # the others are measured
        log.warning("version_not_measured", backbone=version.name, version=version.version, detail=str(error))
        return
    if files:
        with context.write() as session:
            space.record(session, version, sum(size for _, size in files))

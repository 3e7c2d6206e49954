"""The result that an attempt has stored as a file of its run's artifact folder."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.controller.context import ControllerContext
from service.controller.kind import NoResult
from service.db.tables import Job
from service.jobs.state import State

Form = TypeVar("Form", bound=BaseModel)


def stored_result(context: ControllerContext, job: Job, state: State, file: str, form: type[Form]) -> Form | None:
    """What ``file`` says of a job that moves to ``state``; None before its success.

    Raises `Unavailable`, and `NoResult` where the file is missing or is not of this form: looking again would not
    change that, but another attempt writes the file anew.
    """
    if state is not State.SUCCEEDED:
        return None
    stored = None
    if job.artifact_uri:
        with context.dependencies.storage.call():
            stored = context.app.artifacts.read(job.artifact_uri, file)
    if stored is None:
        raise NoResult(f"its result, {file}, is missing in its artifact folder")
    try:
        return form.model_validate_json(stored)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise NoResult(f"its result, {file}, cannot be read: {place + ': ' if place else ''}{first['msg']}") from error

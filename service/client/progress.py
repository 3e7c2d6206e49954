"""Following a job: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from service.client import render
from service.client.errors import PASSING_STATUSES, Answer, ApiError, ConnectionFailed
from service.client.sdk import Client
from service.jobs.schemas import JobView, State

POLL_S: Final = 1.0
LINE_EVERY_S: Final = 15.0
"""Between two lines where the output is not a terminal."""
AWAY_LIMIT_S: Final = 900.0
"""The service may be away this long; the job does not need it."""


def follow(client: Client, job_id: str, console: Console) -> JobView:
    """Show a job until it has ended or is paused, and give it as it is then.

    The service may restart meanwhile. Raises `ConnectionFailed` when it stays away, `ApiError` for what it refuses.
    """
    bar = Progress(
        TextColumn("{task.fields[state]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[line]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=1.0, state="", line="")
        shown = _Shown(console, lambda error: bar.update(task, line=f"waiting for the service: {error}"))
        while True:
            job = shown.patiently(lambda: client.job(job_id))
            shown.changes(client, job)
            _draw(bar, task, job)
            if job.state.terminal or job.state is State.PAUSED:
                return job
            if not console.is_terminal:
                shown.line(job)
            time.sleep(POLL_S)


def _draw(bar: Progress, task: TaskID, job: JobView) -> None:
    progress = job.progress
    done = progress.epoch / progress.epochs if progress else 0.0
    bar.update(task, completed=min(1.0, done), state=job.state.value, line=render.progress_line(job))


class _Shown:
    """What the reader has been told."""

    def __init__(self, console: Console, tell_away: Callable[[Exception], None]) -> None:
        self._console, self._tell_away = console, tell_away
        self._state: tuple[State, str] | None = None
        self._event, self._next_line = 0, 0.0

    def patiently(self, ask: Callable[[], Answer]) -> Answer:
        """The answer, however long the service takes to come back."""
        end = time.monotonic() + AWAY_LIMIT_S
        while True:
            try:
                return ask()
            except (ConnectionFailed, ApiError) as error:
                passing = not isinstance(error, ApiError) or error.status in PASSING_STATUSES
                if not passing or time.monotonic() > end:
                    raise
                self._tell_away(error)

    def changes(self, client: Client, job: JobView) -> None:
        """A line for each event since the last look."""
        if self._state == (job.state, job.message):
            return
        self._state = (job.state, job.message)
        for event in self.patiently(lambda: list(client.events(job.id))):
            if event.id > self._event:
                self._event = event.id
                text = Text.assemble((render.when(event.time), "dim"), " ", render.state(event.state))
                self._console.print(text.append(f"  {event.message}" if event.message else ""), soft_wrap=True)

    def line(self, job: JobView) -> None:
        """How far the job is, once in a while."""
        if job.progress and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._console.print(render.progress_line(job), soft_wrap=True)

"""Following a job: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from service.client import render, render_progress, tables
from service.client.console import Console, Text
from service.client.sdk import Client
from service.client.shell import Outages
from service.jobs.schemas import EventView, JobView
from service.jobs.state import WAITING, State

LINE_EVERY_S: Final = 15.0
"""Seconds between two progress lines where the output is not a terminal."""
BAR_WIDTH: Final = 10
BAR_COLUMNS: Final = len("recovering") + BAR_WIDTH + len("100%") + 3


def follow(client: Client, job_id: str, console: Console) -> JobView:
    """Show a job until it has ended or is paused, and return its last state.

    The service may restart meanwhile. Raises `ConnectionFailed` if it stays unreachable, `ApiError` if it refuses.
    """
    bar = Progress(
        TextColumn("{task.fields[state]}"),
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[line]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        display = _Display(console, bar)
        for update in client.stream(job_id, tell=display.outage):
            if isinstance(update, EventView):
                display.events([update])
            elif isinstance(update, JobView):
                display.job(update)
                if update.state is State.PAUSED:  # the stream would go on
                    display.events(client.events(job_id))
                    break
    return display.newest or client.job(job_id)


class _Display:
    """The progress bar, and the lines of events above it."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task: TaskID = bar.add_task("", total=1.0, state="", line="")
        self._outages, self._last_event, self._next_line = Outages(console), 0, 0.0
        self._said = ""
        """The message of the last line."""
        self.newest: JobView | None = None

    def outage(self, error: Exception | None) -> None:
        """The service has become unreachable, or is back."""
        self._outages(error)
        self._bar.update(self._task, line="waiting for the service" if error else "")

    def events(self, events: Iterable[EventView]) -> None:
        """Print the events that have not been printed yet."""
        for event in events:
            if event.id > self._last_event:
                self._last_event = event.id
                self._print(event.time, event.state, event.message)

    def _print(self, time_of: datetime, state: State, message: str) -> None:
        self._said = message
        text = Text.assemble((tables.when(time_of), "dim"), " ", render.state(state))
        self._console.print(text.append(f"  {message}" if message else ""), soft_wrap=True)

    def job(self, job: JobView) -> None:
        """Update the bar; where the output is not a terminal, print a line now and then."""
        self.newest, progress = job, job.progress
        if job.state in WAITING and job.message not in {"", self._said}:  # why it waits is no event
            self._print(datetime.now(UTC), job.state, job.message)
        line = render_progress.line(job, self._console.width - BAR_COLUMNS)
        self._bar.update(self._task, completed=render_progress.share_done(progress), state=job.state.value, line=line)
        if progress and not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self._console.print(render_progress.line(job), soft_wrap=True)

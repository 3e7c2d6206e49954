"""What the client's commands share: the terminal, the server, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.client.sdk import Client
from service.client.server import find_server

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it."""
PIPE_WIDTH: Final = 1000
"""Columns where standard output is no terminal: programs get a table's row as one line, with nothing cut."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True)


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the server that the environment or a local stack names."""
    server = find_server()
    with Client(server.url, server.token) as client:
        yield client


def print_json(found: BaseModel | Iterable[BaseModel]) -> None:
    """One document on standard output: an object, or an array of objects."""
    if isinstance(found, BaseModel):
        typer.echo(found.model_dump_json(indent=2))
    else:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found], indent=2))


@contextmanager
def following(job_id: str) -> Iterator[None]:
    """Ctrl-C ends the showing of a job, and says that the job goes on."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(
            f"no longer following; job {job_id} goes on. To end it: rcmae jobs cancel {job_id}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


class Outages:
    """Says once that the service is away, and when it is back; `Client.stream` tells it."""

    def __init__(self, console: Console) -> None:
        self._console, self._away = console, False

    def __call__(self, error: Exception | None) -> None:
        if error is None:
            self._console.print("the service is back", highlight=False)
        elif not self._away:
            self._console.print(f"waiting for the service: {error}", highlight=False, markup=False, soft_wrap=True)
        self._away = error is not None


@contextmanager
def download_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar while something is downloaded; gives what is told the bytes that have come and the bytes there are."""
    how_fast = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *how_fast, console=err, disable=not err.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

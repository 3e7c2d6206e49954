"""Shared by the client's commands: the terminal, the connection to the server, JSON for programs."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, Final, TextIO

import typer
from pydantic import BaseModel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.client.console import Console, echo_json
from service.client.errors import ApiError, ClientError
from service.client.sdk import Client
from service.client.server import TOKEN_VARIABLE, find_server
from trainer.spec.base import Problem, SpecError

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, by the shells' convention."""
PIPE_WIDTH: Final = 1000
"""Columns where standard output is not a terminal: each row of a table is one line, with nothing cut off."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True)


def read_text(file: TextIO) -> str:
    """The text of a spec's file; raises `SpecError`, with the line, if it is not text."""
    try:
        return file.read()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"line {line}: is not {error.encoding} text: save the file in that encoding"
        raise SpecError([Problem("", "", None, message)]) from error


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the server that the environment names, or else of the local stack."""
    server = find_server()
    try:
        with Client(server.url, server.token) as client:
            yield client
    except ApiError as error:
        if error.status == HTTPStatus.UNAUTHORIZED and server.token_file:
            error.detail = (
                f"{error.detail}. It is the token in {server.token_file}. If you have another admin token, set "
                f"{TOKEN_VARIABLE} to it. Otherwise `rcmae down`, delete that file, and `rcmae up` makes a new one"
            )
        raise


def print_json(views: BaseModel | Iterable[BaseModel]) -> None:
    """One document on standard output: an object, or an array of objects."""
    if isinstance(views, BaseModel):
        echo_json(views.model_dump_json(indent=2))
    else:
        echo_json(json.dumps([view.model_dump(mode="json") for view in views], indent=2))


@contextmanager
def following(job_id: str) -> Iterator[None]:
    """On Ctrl-C, stop showing a job, and say that the job goes on."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(
            f"no longer following; job {job_id} goes on. To stop it: rcmae jobs cancel {job_id}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


class Outages:
    """Prints once that the service is unreachable, and when it is back; the ``tell`` of `Client.stream`."""

    def __init__(self, console: Console) -> None:
        self._console, self._unreachable = console, False

    def __call__(self, error: Exception | None) -> None:
        if error is None:
            self._console.print("the service is back", highlight=False)
        elif not self._unreachable:
            self._console.print(f"waiting for the service: {error}", highlight=False, markup=False, soft_wrap=True)
        self._unreachable = error is not None


def require_packages(command: str, packages: Sequence[str]) -> None:
    """Raises `ClientError` that says what to install, if packages that a command needs are missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ClientError(
            f"`rcmae {command}` needs {', '.join(missing)}: pip install 'rcmae[server,trainer]'. "
            "(client commands work without: submit, jobs, searches, backbones, tokens, audit, cluster)"
        )


@contextmanager
def download_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields a function that takes the bytes received and the total."""
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *columns, console=err, disable=not err.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)

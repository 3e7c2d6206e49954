"""The commands for a job's output: `rcmae jobs logs`, `metrics`, `checkpoints` and `files`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from service.client import render, tables
from service.client.console import Text, echo_json
from service.client.sdk import Client
from service.client.shell import JobId, Json, Outages, connected, download_bar, err, following, out, print_json
from service.client.streaming import Update
from service.jobs.output_schemas import JobFileView, JobsMetricsView, Level, LogBatch, LogPage, LogView

LEVEL_STYLES: Final = {"error": "red", "warning": "yellow"}

AttemptOption = Annotated[int | None, typer.Option("--attempt", min=1, help="Only this attempt's.")]
SourceOption = Annotated[str | None, typer.Option("--source", help="Only of this process: `driver` or `rank-<n>`.")]
LevelOption = Annotated[Level | None, typer.Option("--level", help="Only of this level and above.")]
SearchOption = Annotated[str | None, typer.Option("--search", metavar="TEXT", help="Only lines with this text.")]
TailOption = Annotated[int | None, typer.Option(min=0, max=5000, metavar="N", help="Start with the last N lines.")]


def logs(
    job: JobId,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the job has ended.")] = False,
    attempt: AttemptOption = None,
    source: SourceOption = None,
    level: LevelOption = None,
    search: SearchOption = None,
    tail: TailOption = None,
    download: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one whole log to a new file: with --attempt and --source."),
    ] = None,
    as_json: Json = False,
) -> None:
    """A job's log lines, by attempt and source; with --follow as they are written."""
    with connected() as client:
        if download:
            if follow_it or level or search or tail is not None or as_json:
                raise typer.BadParameter(
                    "downloads one whole log: use it with --attempt and --source alone", param_hint="--download"
                )
            _download(client, job, attempt, source, download)
        elif follow_it:
            begin: int | Literal["all"] = "all" if tail is None else tail
            updates = client.stream(
                job,
                logs=True,
                level=level,
                attempt=attempt,
                source=source,
                search=search,
                tail=begin,
                tell=Outages(err),
            )
            _follow(updates, job, as_json)
        else:
            read_page = partial(client.logs, job, attempt=attempt, source=source, level=level, search=search)
            print_log(read_page, tail, as_json)


def print_log(read_page: Callable[..., LogPage], tail: int | None, as_json: bool) -> None:
    """Print all lines written so far, or the last ``tail``, page by page."""
    page = read_page(tail=tail)
    _print_lines(page.items, as_json)
    while page.more:
        page = read_page(cursor=page.next_cursor)
        _print_lines(page.items, as_json)


def _follow(updates: Iterator[Update], job: str, json: bool) -> None:
    with following(job):
        for update in updates:
            if isinstance(update, LogBatch):
                _print_lines(update.lines, json)


def _download(client: Client, job: str, attempt: int | None, source: str | None, file: Path) -> None:
    if attempt is None or source is None:
        raise typer.BadParameter(
            "say which log: --attempt 1 --source rank-0, for example (rcmae jobs show has the attempts)",
            param_hint="--download",
        )
    with download_bar(f"{source}, attempt {attempt}") as progress:
        count = client.download_log(job, attempt, source, file, progress)
    err.print(f"{file}: {tables.size(count)}", highlight=False, markup=False, soft_wrap=True)


def _print_lines(lines: Iterable[LogView], as_json: bool) -> None:
    for line in lines:
        if as_json:
            echo_json(line.model_dump_json())
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(line.time))
            head = Text(f"{clock} a{line.attempt} {line.source} ", style="dim")
            out.print(head.append(line.message, style=LEVEL_STYLES.get(line.level, "not dim")), soft_wrap=True)


def metrics(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="One job, or several to compare.")],
    key: Annotated[
        list[str] | None, typer.Option(help="Only this metric; repeatable. All of one job by default.")
    ] = None,
    points: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Print at most N points of every curve.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Metric curves, one row each; with --points the points instead. With --json, at most 1000 points or --points."""
    if len(jobs) > 1 and not key:
        raise typer.BadParameter("name the metrics to compare, such as train/loss", param_hint="--key")
    max_points = points or (None if as_json else render.CURVE_WIDTH)
    with connected() as client:
        if len(jobs) > 1:
            curves = client.metrics_of(jobs, key or (), points=max_points)
        else:
            curves = JobsMetricsView(jobs={jobs[0]: client.metrics(jobs[0], key or (), points=max_points).series})
    if as_json:
        print_json(curves)
    else:
        out.print(render.points(curves) if points else render.curves(curves))


def checkpoints(job: JobId, as_json: Json = False) -> None:
    """The checkpoints that a next attempt could resume from, newest first."""
    with connected() as client:
        checkpoint_views = client.checkpoints(job)
    print_json(checkpoint_views) if as_json else out.print(render.checkpoints(checkpoint_views))


def files(
    job: JobId,
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Only files whose paths begin like this: embeddings/")
    ] = "",
    download: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Download them into this folder; what has come already stays there."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other files that are in the way.")] = False,
    as_json: Json = False,
) -> None:
    """What a job has left for people: embeddings, evaluations, inspections, pictures."""
    if force and download is None:
        raise typer.BadParameter("replaces files of a download: use it with --download DIR", param_hint="--force")
    with connected() as client:
        if download is None:
            views = list(client.files(job, prefix=prefix))
        else:
            views = download_files(client, job, download, prefix, force)
    if as_json:
        print_json(views)
    elif download is None:
        out.print(render.files(views))


def download_files(client: Client, job_id: str, to: Path, prefix: str, force: bool = False) -> list[JobFileView]:
    """Download a job's files, with a progress bar, and say what has come."""
    with download_bar(prefix.rstrip("/") or job_id) as progress:
        views = client.download_files(job_id, to, prefix=prefix, force=force, progress=progress)
    count, total = len(views), tables.size(sum(view.bytes for view in views))
    text = f"{to}: {count} {'file' if count == 1 else 'files'}, {total}"
    err.print(text, highlight=False, markup=False, soft_wrap=True)
    return views

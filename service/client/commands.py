"""The client's commands: submit, jobs, backbones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, Group
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from service.client import render
from service.client.errors import ClientError
from service.client.progress import follow
from service.client.sdk import Client
from service.client.server import find_server
from service.jobs.schemas import Deletion, JobView, LogView, State
from trainer.spec.base import apply_overrides, read_document

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

jobs = typer.Typer(no_args_is_help=True, help="List, show, follow and steer jobs.")
backbones = typer.Typer(no_args_is_help=True, help="List, show and pull pretrained backbones.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

out, err = Console(), Console(stderr=True)


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


def submit(
    spec: Annotated[typer.FileText, typer.Argument(metavar="SPEC", help="A YAML or JSON file; - for standard input.")],
    follow_it: Annotated[bool, typer.Option("--follow", help="Show the job until it has ended.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what the job would need.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the file: optimization.epochs=5")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and spec again is the same job, and nothing new.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a job. With --follow the exit status is 0 only if it succeeds."""
    document = apply_overrides(read_document(spec.read()), overrides or ())
    with connected() as client:
        if plan:
            planned = client.plan(document)
            print_json(planned) if as_json else out.print(render.plan(planned))
            raise typer.Exit(1 if planned.fits == "never" else 0)
        job = client.submit(document, idempotency_key)
        if follow_it:
            err.print(f"job [bold]{job.id}[/] ({job.name})", highlight=False)
            job = follow_to_end(client, job.id)
        if as_json:
            print_json(job)
        elif follow_it:
            out.print(render.job(job))
        else:
            out.print(f"job [bold]{job.id}[/] is {job.state.value}: {job.name}", highlight=False)
            out.print(f"follow it with: rcmae jobs wait {job.id}", highlight=False, soft_wrap=True)
            out.print(f"its log:        rcmae jobs logs {job.id}", highlight=False, soft_wrap=True)
        if follow_it:
            raise typer.Exit(exit_status(job))


def follow_to_end(client: Client, job_id: str) -> JobView:
    """Show a job until it has ended. Ctrl-C ends the showing, and says that the job goes on."""
    try:
        return follow(client, job_id, err)
    except KeyboardInterrupt:
        err.print(f"no longer following; job {job_id} goes on. To end it: rcmae jobs cancel {job_id}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def exit_status(job: JobView) -> int:
    """0 only for success."""
    return 0 if job.state is State.SUCCEEDED else 1


@jobs.command("list")
def list_jobs(
    state: Annotated[list[State] | None, typer.Option(help="Only these; repeatable.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME:VALUE", help="Only with this label.")] = None,
    name_contains: Annotated[str | None, typer.Option(help="Only names with this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Jobs, newest first."""
    labels = dict(_label(text) for text in label or ())
    with connected() as client:
        all_of_them = client.jobs(states=state or (), owner=owner, labels=labels, name_contains=name_contains)
        found = list(islice(all_of_them, limit))
    print_json(found) if as_json else out.print(render.jobs(found))


def _label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise typer.BadParameter(f"write a label as name:value, for example team:vision, not {text!r}")
    return name, value


@jobs.command()
def show(job: JobId, as_json: Json = False) -> None:
    """One job: state, progress, results, attempts. With --json the job alone."""
    with connected() as client:
        found = client.job(job)
        attempts = client.attempts(job) if found.attempts and not as_json else []
    _print_job(found, as_json)
    if attempts:
        out.print(Group("", render.attempts(attempts)))


@jobs.command()
def logs(
    job: JobId,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only this attempt.")] = None,
    source: Annotated[str | None, typer.Option(help="Only `driver` or `rank-<n>`.")] = None,
    as_json: Json = False,
) -> None:
    """A job's log lines, by attempt and source."""
    with connected() as client:
        cursor: str | None = None
        while True:
            ended = client.job(job).state.terminal  # asked first: what is written until then is read below
            while True:
                page = client.logs(job, attempt=attempt, source=source, cursor=cursor)
                cursor = page.next_cursor
                for line in page.items:
                    _print_line(line, as_json)
                if not page.items:
                    break
            if ended or not follow_it:
                return
            time.sleep(1.0)


def _print_line(line: LogView, as_json: bool) -> None:
    if as_json:
        typer.echo(line.model_dump_json())
        return
    clock = time.strftime("%H:%M:%S", time.localtime(line.time))
    head = Text(f"{clock} a{line.attempt} {line.source} ", style="dim")
    style = {"error": "red", "warning": "yellow"}.get(line.level, "")
    out.print(head.append(line.message, style=style or "not dim"), soft_wrap=True)


@jobs.command()
def wait(
    job: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait at most.")] = None,
    as_json: Json = False,
) -> None:
    """Until a job has ended; the exit status is 0 only if it succeeded."""
    with connected() as client:
        try:
            found = client.wait(job, timeout_s=timeout) if timeout is not None else follow_to_end(client, job)
        except TimeoutError as error:
            raise ClientError(str(error)) from error
    _print_job(found, as_json)
    raise typer.Exit(exit_status(found))


@jobs.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """End a job at its next step, with a checkpoint."""
    with connected() as client:
        _print_job(client.cancel(job), as_json)


@jobs.command()
def pause(job: JobId, as_json: Json = False) -> None:
    """Stop a job at its next step, with a checkpoint, until it is resumed."""
    with connected() as client:
        _print_job(client.pause(job), as_json)


Workers = Annotated[
    str | None, typer.Option(metavar="N", help="On so many workers from now on; `auto` for what the cluster has.")
]
SetResources = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="resources.KEY=VALUE", help="On other resources: resources.cpus_per_worker=2"),
]


@jobs.command()
def resume(job: JobId, workers: Workers = None, overrides: SetResources = None, as_json: Json = False) -> None:
    """Queue a paused job again; it goes on from its last checkpoint."""
    resources = _resources(workers, overrides)
    with connected() as client:
        _print_job(client.resume(job, resources=resources), as_json)


@jobs.command()
def retry(
    job: JobId,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Not from the last checkpoint.")] = False,
    workers: Workers = None,
    overrides: SetResources = None,
    as_json: Json = False,
) -> None:
    """Queue a failed or cancelled job again."""
    resources = _resources(workers, overrides)
    with connected() as client:
        _print_job(client.retry(job, from_scratch=from_scratch, resources=resources), as_json)


def _resources(workers: str | None, overrides: Iterable[str] | None) -> dict[str, Any]:
    """What a job is to run on from now on, as far as it is told; the service knows what may be said."""
    told = [*([f"resources.workers={workers}"] if workers else []), *(overrides or ())]
    document = apply_overrides({"resources": {}}, told)
    others = sorted(document.keys() - {"resources"})
    if others or not isinstance(document["resources"], dict):
        raise typer.BadParameter(
            f"{others[0] if others else 'resources'} cannot be changed here, only a job's resources can: "
            "resources.workers=4. For anything else submit a new job",
            param_hint="--set",
        )
    return dict(document["resources"])


@jobs.command("set")
def set_(
    job: JobId,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher starts first.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Add or change this label; repeatable.")
    ] = None,
    remove_label: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Remove this label; repeatable.")
    ] = None,
    notes: Annotated[str | None, typer.Option(metavar="TEXT", help='In place of the old ones; "" for none.')] = None,
    as_json: Json = False,
) -> None:
    """Change a job's priority, labels or notes; what is not named stays."""
    added, removed = dict(_label(text) for text in label or ()), set(remove_label or ())
    if priority is None and notes is None and not added and not removed:
        raise typer.BadParameter("say what to change: --priority, --label, --remove-label or --notes")
    with connected() as client:
        labels = None
        if added or removed:  # the service takes all labels at once
            before = client.job(job).labels
            if unknown := removed - before.keys():
                raise ClientError(f"{job} has no label {', '.join(sorted(unknown))}; it has {_names(before)}")
            labels = {name: value for name, value in (before | added).items() if name not in removed}
        _print_job(client.patch(job, priority=priority, labels=labels, notes=notes), as_json)


def _names(labels: Iterable[str]) -> str:
    return ", ".join(sorted(labels)) or "none"


@jobs.command()
def delete(
    job: JobId,
    preview: Annotated[bool, typer.Option("--preview", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    with_backbones: Annotated[
        bool, typer.Option("--with-backbones", help="Also the backbone versions that it registered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete a job that has ended, with its run and files. What goes is shown first; there is no way back."""
    with connected() as client:
        going = client.deletion_preview(job)
        if not preview:
            err.print(render.deletion(going), soft_wrap=True)
            _make_sure(going, yes, with_backbones)
            going = client.delete(job, with_backbones=with_backbones)
    if as_json:
        print_json(going)
    elif preview:
        out.print(render.deletion(going), soft_wrap=True)
    else:
        out.print(f"deleted {job}; its files are removed within moments", highlight=False, soft_wrap=True)


def _make_sure(going: Deletion, yes: bool, with_backbones: bool) -> None:
    """Raises `ClientError` where a deletion is not wanted, or not all of it."""
    if going.backbones and not with_backbones:
        named = ", ".join(f"{backbone.name}:{backbone.version}" for backbone in going.backbones)
        raise ClientError(f"{named} would go with it: nothing is deleted without --with-backbones")
    if not yes and not typer.confirm("Delete all of this?", err=True):
        raise ClientError("nothing is deleted")


def _print_job(job: JobView, as_json: bool) -> None:
    print_json(job) if as_json else out.print(render.job(job))


@backbones.command("list")
def list_backbones(as_json: Json = False) -> None:
    """Registered backbones."""
    with connected() as client:
        found = list(client.backbones())
    print_json(found) if as_json else out.print(render.backbones(found))


Reference = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="A backbone; its latest version by default.")]


@backbones.command("show")
def show_backbone(backbone: Reference, as_json: Json = False) -> None:
    """One version of a backbone with its files."""
    name, number = _reference(backbone)
    with connected() as client:
        found = client.version(name, number)
    print_json(found) if as_json else out.print(render.version(found))


@backbones.command()
def pull(
    backbone: Reference,
    folder: Annotated[Path, typer.Option("--out", help="The new folder for it.")],
    form: Annotated[str, typer.Option("--format", help="hf: for transformers.ViTModel.")] = "hf",
    as_json: Json = False,
) -> None:
    """Download a backbone, checked against its sha256 sums."""
    name, number = _reference(backbone)
    if form != "hf":
        raise typer.BadParameter(f"{form!r} is not a format; there is hf", param_hint="--format")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with connected() as client, Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(backbone, total=None)
        found = client.pull(
            name,
            folder,
            version=number,
            folder=form,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps({"name": found.name, "version": found.version, "folder": str(folder.absolute())}))
    else:
        out.print(f"{found.name}:{found.version} is in {folder}", highlight=False, soft_wrap=True)


def _reference(text: str) -> tuple[str, int | None]:
    name, _, number = text.partition(":")
    if number and not number.isdigit():
        raise typer.BadParameter(f"{number!r} is not a version: write name or name:number, for example digits:2")
    return name, int(number) if number else None

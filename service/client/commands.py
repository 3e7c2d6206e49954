"""The commands for jobs: `rcmae submit`, and those of `rcmae jobs` that are not in `results`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Group

from service.client import render
from service.client.console import Text
from service.client.errors import ClientError
from service.client.progress import follow
from service.client.sdk import Client
from service.client.shell import JobId, Json, connected, err, following, out, print_json, read_text
from service.jobs.schemas import Deletion, JobView
from service.jobs.state import State
from trainer.spec.base import apply_overrides, read_document
from trainer.spec.job import Kind

jobs = typer.Typer(no_args_is_help=True, help="List, show, follow and control jobs.")


def submit(
    spec: Annotated[typer.FileText, typer.Argument(metavar="SPEC", help="A YAML or JSON file; - for standard input.")],
    follow_it: Annotated[bool, typer.Option("--follow", help="Follow the job until it has ended.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what the job would need.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value: optimization.epochs=5")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and spec again return the same job.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a job. With --follow the exit status is 0 only if it succeeds."""
    document = apply_overrides(read_document(read_text(spec)), overrides or ())
    with connected() as client:
        if plan:
            planned = client.plan(document)
            print_json(planned) if as_json else out.print(render.plan(planned))
            raise typer.Exit(1 if planned.fits == "never" else 0)
        job = client.submit(document, idempotency_key)
        if follow_it:
            err.print(_title(job), soft_wrap=True)
            job = follow_to_end(client, job.id)
        if as_json:
            print_json(job)
        elif follow_it:
            out.print(render.job(job))
        else:
            tell_submitted(job, "log", "jobs logs")
            if job.kind == Kind.SEARCH:
                out.print(f"its trials:     rcmae searches trials {job.id}", highlight=False, soft_wrap=True)
        if follow_it:
            raise typer.Exit(exit_status(job))


def tell_submitted(job: JobView, what: str, command: str) -> None:
    """Say that a job is submitted, how to follow it, and which command shows ``what`` of it."""
    out.print(_title(job).append(f" is {job.state.value}"), soft_wrap=True)
    out.print(f"follow it with: rcmae jobs wait {job.id}", highlight=False, soft_wrap=True)
    out.print(f"{f'its {what}:':15} rcmae {command} {job.id}", highlight=False, soft_wrap=True)


def _title(job: JobView) -> Text:
    return Text("job ").append(job.id, "bold").append(f" ({job.name})")


def follow_to_end(client: Client, job_id: str) -> JobView:
    """Follow a job until it has ended or is paused."""
    with following(job_id):
        return follow(client, job_id, err)


def exit_status(job: JobView) -> int:
    """0 only for success."""
    return 0 if job.state is State.SUCCEEDED else 1


@jobs.command("list")
def list_jobs(
    state: Annotated[list[State] | None, typer.Option(help="Only these; repeatable.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME:VALUE", help="Only with this label.")] = None,
    name_contains: Annotated[str | None, typer.Option(help="Only names with this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: Json = False,
) -> None:
    """Jobs, newest first."""
    labels = dict(label_pair(text) for text in label or ())
    with connected() as client:
        matches = client.jobs(states=state or (), kind=kind, owner=owner, labels=labels, name_contains=name_contains)
        views = list(islice(matches, limit))
    print_json(views) if as_json else out.print(render.jobs(views))


def label_pair(text: str) -> tuple[str, str]:
    """Name and value of a label on the command line."""
    name, separator, value = text.partition(":")
    if not separator:
        raise typer.BadParameter(f"write a label as name:value, for example team:vision, not {text!r}")
    return name, value


@jobs.command()
def show(job: JobId, as_json: Json = False) -> None:
    """One job: state, progress, results, attempts. With --json the job alone."""
    with connected() as client:
        view = client.job(job)
        attempts = client.attempts(job) if view.attempts and not as_json else []
    print_job(view, as_json)
    if attempts:
        out.print(Group("", render.attempts(attempts)))


@jobs.command()
def wait(
    job: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait at most.")] = None,
    as_json: Json = False,
) -> None:
    """Until a job has ended; the exit status is 0 only if it succeeded."""
    with connected() as client:
        try:
            view = client.wait(job, timeout_s=timeout) if timeout is not None else follow_to_end(client, job)
        except TimeoutError as error:
            raise ClientError(str(error)) from error
    print_job(view, as_json)
    raise typer.Exit(exit_status(view))


@jobs.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """Stop a job for good at its next step, with a checkpoint."""
    with connected() as client:
        print_job(client.cancel(job), as_json)


@jobs.command()
def pause(job: JobId, as_json: Json = False) -> None:
    """Stop a job at its next step, with a checkpoint, until it is resumed."""
    with connected() as client:
        print_job(client.pause(job), as_json)


Workers = Annotated[
    str | None, typer.Option(metavar="N", help="Continue on this many workers; `auto` for what the cluster has.")
]
SetResources = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="resources.KEY=VALUE", help="Change its resources: resources.cpus_per_worker=2"),
]


@jobs.command()
def resume(job: JobId, workers: Workers = None, overrides: SetResources = None, as_json: Json = False) -> None:
    """Queue a paused job again; it resumes from its last checkpoint."""
    resources = _resources(workers, overrides)
    with connected() as client:
        print_job(client.resume(job, resources=resources), as_json)


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
        print_job(client.retry(job, from_scratch=from_scratch, resources=resources), as_json)


def _resources(workers: str | None, overrides: Iterable[str] | None) -> dict[str, Any]:
    """The new values of a job's resources; the service checks them."""
    changes = [*([f"resources.workers={workers}"] if workers else []), *(overrides or ())]
    document = apply_overrides({"resources": {}}, changes)
    others = sorted(document.keys() - {"resources"})
    if others or not isinstance(document["resources"], dict):
        raise typer.BadParameter(
            f"{others[0] if others else 'resources'} cannot be changed: only a job's resources can, as in "
            "resources.workers=4. For other changes, submit a new job",
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
    notes: Annotated[str | None, typer.Option(metavar="TEXT", help='Replace the notes; "" removes them.')] = None,
    as_json: Json = False,
) -> None:
    """Change a job's priority, labels or notes; the rest stays."""
    added, removed = dict(label_pair(text) for text in label or ()), set(remove_label or ())
    if priority is None and notes is None and not added and not removed:
        raise typer.BadParameter("say what to change: --priority, --label, --remove-label or --notes")
    with connected() as client:
        labels = None
        if added or removed:
            labels = changed_labels(job, client.job(job).labels, added, removed)
        print_job(client.patch(job, priority=priority, labels=labels, notes=notes), as_json)


def changed_labels(what: str, before: Mapping[str, str], added: Mapping[str, str], removed: Set[str]) -> dict[str, str]:
    """All labels after a change, as the service takes them. Raises `ClientError` for one that cannot be removed."""
    if unknown := removed - before.keys():
        names = ", ".join(sorted(before)) or "none"
        raise ClientError(f"{what} has no label {', '.join(sorted(unknown))}; it has {names}")
    return {name: value for name, value in {**before, **added}.items() if name not in removed}


@jobs.command()
def delete(
    job: JobId,
    preview: Annotated[bool, typer.Option("--preview", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    with_backbones: Annotated[
        bool, typer.Option("--with-backbones", help="Also delete the backbone versions that it registered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete a job that has ended, with its run and files, for good. Shows first what will be deleted."""
    with connected() as client:
        deletion = client.deletion_preview(job)
        if not preview:
            err.print(render.deletion(deletion), soft_wrap=True)
            _confirm(deletion, yes, with_backbones)
            deletion = client.delete(job, with_backbones=with_backbones)
    if as_json:
        print_json(deletion)
    elif preview:
        out.print(render.deletion(deletion), soft_wrap=True)
    else:
        out.print(f"deleted {job}; its files are removed within moments", highlight=False, soft_wrap=True)


def _confirm(deletion: Deletion, yes: bool, with_backbones: bool) -> None:
    """Raises `ClientError` if the user does not want the deletion, or not all of it."""
    if deletion.backbones and not with_backbones:
        versions = ", ".join(f"{backbone.name}:{backbone.version}" for backbone in deletion.backbones)
        raise ClientError(f"{versions} would be deleted too: nothing is deleted without --with-backbones")
    if not yes and not typer.confirm("Delete all of this?", err=True):
        raise ClientError("nothing is deleted")


def print_job(job: JobView, as_json: bool) -> None:
    """Print a job as it is now."""
    print_json(job) if as_json else out.print(render.job(job))

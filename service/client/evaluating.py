"""The commands for evaluations: `rcmae evaluate` and `rcmae evaluations`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from service.client import render, render_evaluations
from service.client.commands import exit_status, follow_to_end, label_pair, tell_submitted
from service.client.data import absolute
from service.client.evaluation_calls import evaluate_spec
from service.client.shell import JobId, Json, connected, out, print_json
from service.client.subjects import HELP, METAVAR, subject
from trainer.spec.base import apply_overrides
from trainer.spec.evaluate import Pooling

evaluations = typer.Typer(no_args_is_help=True, help="What evaluations have found, and how backbones compare.")

Backbone = Annotated[str | None, typer.Option(help="Only of this registered backbone: NAME, NAME:3 or NAME@alias.")]
Dataset = Annotated[str | None, typer.Option(metavar="TEXT", help="Only trained on this: URI, title or fingerprint.")]
TestSet = Annotated[str | None, typer.Option(metavar="TEXT", help="Only tested on this: URI, title or fingerprint.")]
Protocols = Annotated[list[str] | None, typer.Option("--protocol", help="Only with this, such as linear; repeatable.")]


def evaluate(
    network: Annotated[str, typer.Argument(metavar=METAVAR, help=HELP)],
    dataset: Annotated[str, typer.Option(metavar="URI", help="Labelled images to train classifiers on.")],
    test: Annotated[
        str | None, typer.Option(metavar="URI", help="Those to score them on; by default a share of the dataset.")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="A way to measure; repeatable. By default knn and linear.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How often to measure what depends on chance.")] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="How the network's tokens become one vector.")] = None,
    register_as: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fine-tune on the class token, and register the classifier under this name."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of the spec: features.layer=all")
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow", help="Follow the job until it has ended.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what the job would need.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how good a backbone is on labelled images, beside the same network without its training.

    With --follow the exit status is 0 only if it succeeds.
    """
    tested = absolute(test) if test else None
    spec = evaluate_spec(
        subject(network), absolute(dataset), test=tested, protocols=protocol, seeds=seeds, pooling=pooling,
        register_as=register_as,
    )  # fmt: skip
    spec = apply_overrides(spec, overrides or ())
    if plan:
        _show_plan(spec, as_json)
    with connected() as client:
        job = client.submit(spec)
        if follow_it:
            job = follow_to_end(client, job.id)
        found = client.evaluation(job.id) if follow_it and not as_json and exit_status(job) == 0 else None
    if as_json:
        print_json(job)
    elif follow_it:
        out.print(render_evaluations.evaluation(found) if found else render.job(job))
    else:
        tell_submitted(job, "scores", "evaluations show")
    if follow_it:
        raise typer.Exit(exit_status(job))


def _show_plan(spec: dict[str, Any], as_json: bool) -> None:
    with connected() as client:
        planned = client.plan(spec)
    print_json(planned) if as_json else out.print(render.plan(planned))
    raise typer.Exit(1 if planned.fits == "never" else 0)


@evaluations.command("list")
def list_evaluations(
    backbone: Backbone = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="Only of what this job trained.")] = None,
    dataset: Dataset = None,
    test: TestSet = None,
    protocol: Protocols = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME:VALUE", help="Only with this label.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="created_at, finished_at or a score; a leading - for the greatest first."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: Json = False,
) -> None:
    """Evaluations that have succeeded, newest first."""
    labels = dict(label_pair(text) for text in label or ())
    with connected() as client:
        found = client.evaluations(
            backbone=backbone, job=job, dataset=dataset, test=test, protocols=protocol or (), owner=owner,
            labels=labels, sort=sort, page_size=min(limit, 100),
        )  # fmt: skip
        views = list(islice(found, limit))
    print_json(views) if as_json else out.print(render_evaluations.evaluations(views))


@evaluations.command()
def show(job: JobId, as_json: Json = False) -> None:
    """One evaluation: each score with its intervals. With --json also those of each class and seed."""
    with connected() as client:
        view = client.evaluation(job)
    print_json(view) if as_json else out.print(render_evaluations.evaluation(view))


@evaluations.command()
def table(
    backbone: Backbone = None,
    dataset: Dataset = None,
    test: TestSet = None,
    protocol: Protocols = None,
    as_json: Json = False,
) -> None:
    """Backbones against measurements: the newest score of each, its interval, and the baselines beside it."""
    with connected() as client:
        view = client.evaluation_table(backbone=backbone, dataset=dataset, test=test, protocols=protocol or ())
    print_json(view) if as_json else out.print(render_evaluations.evaluation_table(view))

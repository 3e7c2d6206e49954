"""The commands for hyperparameter searches."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.client import render_searches
from service.client.commands import print_job
from service.client.console import echo_json
from service.client.errors import ClientError
from service.client.results import AttemptOption, LevelOption, SearchOption, SourceOption, TailOption, print_log
from service.client.shell import Json, connected, out, print_json, read_text
from service.searches.schemas import SearchView, TrialState
from trainer.spec import yaml_text
from trainer.spec.base import Problem, SpecError, apply_overrides, parse_overrides, read_document, read_yaml
from trainer.spec.ready_searches import READY, ready_search
from trainer.spec.search import SearchSpec
from trainer.spec.text import visible

searches = typer.Typer(no_args_is_help=True, help="Show and control searches, and write specs of new ones.")

SearchId = Annotated[str, typer.Argument(metavar="SEARCH", help="The search's id, which is its job's.")]
TrialNumber = Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="The trial's number.")]


@searches.command()
def show(search: SearchId, as_json: Json = False) -> None:
    """One search: its objectives, its progress, its best trials so far."""
    with connected() as client:
        _print_search(client.search(search), as_json)


@searches.command("trials")
def list_trials(
    search: SearchId,
    state: Annotated[list[TrialState] | None, typer.Option(help="Only these; repeatable.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="number, value, epoch, duration, started or param:PATH; a leading - for descending order. By "
            "default the newest first."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all trials as CSV to a new file; - for standard output."),
    ] = None,
    as_json: Json = False,
) -> None:
    """A search's trials."""
    if csv and (state or sort or as_json):
        raise typer.BadParameter("writes all trials: leave out --state, --sort and --json", param_hint="--csv")
    with connected() as client:
        if csv:
            _write(client.trials_csv(search), csv)
            return
        views = list(islice(client.trials(search, states=state or (), sort=sort, page_size=min(limit, 100)), limit))
        if as_json:
            print_json(views)
        else:
            out.print(render_searches.trials(views, client.search(search)))


def _write(text: str, file: Path) -> None:
    if str(file) == "-":
        typer.echo(visible(text) if sys.stdout.isatty() else text, nl=False)
        return
    try:
        with file.open("x", newline="") as opened:
            opened.write(text)
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}: name a new file in an existing folder") from error


@searches.command("trial")
def show_trial(search: SearchId, trial: TrialNumber, as_json: Json = False) -> None:
    """One trial: its values beside the best trial's, its curve, and how it ended."""
    with connected() as client:
        view = client.trial(search, trial)
        print_json(view) if as_json else out.print(render_searches.trial(view, client.search(search)))


@searches.command("stop-trial")
def stop_trial(search: SearchId, trial: TrialNumber, as_json: Json = False) -> None:
    """Stop a running trial; its last value is kept."""
    with connected() as client:
        view = client.stop_trial(search, trial)
    print_json(view) if as_json else out.print(f"trial {trial} ends within moments", highlight=False)


@searches.command("retry-trial")
def retry_trial(search: SearchId, trial: TrialNumber, as_json: Json = False) -> None:
    """Try the values of a failed trial again, beyond the budget."""
    with connected() as client:
        retry = client.retry_trial(search, trial)
    message = f"trial {retry.number} has the values of trial {trial}, and is tried next"
    print_json(retry) if as_json else out.print(message, highlight=False)


@searches.command()
def promote(
    search: SearchId,
    trial: Annotated[
        int | None, typer.Argument(metavar="[TRIAL]", min=0, help="The trial's number; by default the best one.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value: optimization.epochs=400")
    ] = None,
    register_as: Annotated[str | None, typer.Option(metavar="NAME", help="The backbone's name.")] = None,
    as_json: Json = False,
) -> None:
    """Submit a trial's spec as a pretraining job. The same request again returns the same job."""
    values = parse_overrides(overrides or ())
    with connected() as client:
        number = _best_trial(client.search(search)) if trial is None else trial
        job = client.promote(search, number, overrides=values, register_as=register_as)
    if as_json:
        print_json(job)
    else:
        out.print(f"trial {number} is job {job.id}, which is {job.state.value}", highlight=False, soft_wrap=True)
        out.print(f"follow it with: rcmae jobs wait {job.id}", highlight=False, soft_wrap=True)


def _best_trial(view: SearchView) -> int:
    if not view.best:
        raise ClientError(f"no trial of {view.id} has a value yet: wait for one, or name a trial")
    numbers = ", ".join(str(trial.number) for trial in view.best)
    if len(view.best) > 1:
        raise ClientError(f"none of the trials {numbers} of {view.id} beats the others in all objectives: name one")
    return view.best[0].number


@searches.command("set")
def set_(
    search: SearchId,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in total.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    max_failed: Annotated[int | None, typer.Option(min=0, help="Trials that may fail.")] = None,
    max_hours: Annotated[
        str | None, typer.Option(metavar="N", help="Hours for which trials run; `none` for no limit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change a search's budget, also while it runs; the rest stays."""
    if trials is None and concurrency is None and max_failed is None and max_hours is None:
        raise typer.BadParameter("say what to change: --trials, --concurrency, --max-failed or --max-hours")
    hours = None if max_hours is None else _hours(max_hours)
    with connected() as client:
        changed = client.change_search(
            search, trials=trials, concurrency=concurrency, max_failed=max_failed, max_hours=hours
        )
    _print_search(changed, as_json)


def _hours(text: str) -> float | Literal["none"]:
    try:
        return "none" if text == "none" else float(text)
    except ValueError:
        raise typer.BadParameter(f"write a number or none, not {text!r}", param_hint="--max-hours") from None


@searches.command()
def add(
    search: SearchId,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="A value of one trial; the algorithm chooses the others."),
    ] = None,
    points: Annotated[
        typer.FileText | None,
        typer.Option(metavar="FILE", help="A YAML or JSON list of points, values by path; - for standard input."),
    ] = None,
    beyond_budget: Annotated[
        bool, typer.Option("--beyond-budget", help="Raise the budget by this many trials.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key and trials again add nothing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try points of your choice next."""
    chosen = [*(_points(read_text(points)) if points else []), *([parse_overrides(values)] if values else [])]
    if not chosen:
        raise typer.BadParameter("say what to try: --set method.mask_ratio=0.8, or --points FILE")
    with connected() as client:
        added = client.add_trials(search, chosen, beyond_budget=beyond_budget, idempotency_key=idempotency_key)
    numbers = ", ".join(str(trial.number) for trial in added)
    message = f"tried next: trial{'' if len(added) == 1 else 's'} {numbers}"
    print_json(added) if as_json else out.print(message, highlight=False, soft_wrap=True)


def _points(text: str) -> list[dict[str, Any]]:
    points = read_yaml(text)
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        message = "must be a list of trials, each with values by path, for example `- {method.mask_ratio: 0.8}`"
        raise SpecError([Problem("points", "/points", points, message)])
    return points


@searches.command()
def stop(search: SearchId, as_json: Json = False) -> None:
    """Start no more trials; the search ends when its running ones have finished."""
    with connected() as client:
        print_job(client.stop(search), as_json)


@searches.command()
def logs(
    search: SearchId,
    trial: TrialNumber,
    attempt: AttemptOption = None,
    source: SourceOption = None,
    level: LevelOption = None,
    text: SearchOption = None,
    tail: TailOption = None,
    as_json: Json = False,
) -> None:
    """A trial's log lines. Those of the search itself: rcmae jobs logs SEARCH."""
    with connected() as client:
        read_page = partial(client.trial_logs, search, trial, attempt=attempt, source=source, level=level, search=text)
        print_log(read_page, tail, as_json)


@searches.command()
def presets(as_json: Json = False) -> None:
    """Ready-made searches, for `rcmae searches new`."""
    if as_json:
        described = [
            {"name": name, "about": each.about, "varies": list(each.space), "trials": each.trials}
            for name, each in READY.items()
        ]
        echo_json(json.dumps(described, indent=2))
    else:
        out.print(render_searches.ready(READY))


@searches.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"A ready-made search: {', '.join(READY)}.")],
    base: Annotated[
        typer.FileText,
        typer.Option(metavar="SPEC", help="The pretraining spec, in YAML or JSON, that the trials vary."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a value: budget.trials=16, base.optimization.epochs=5"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the spec of a ready-made search over a pretraining spec, to edit and submit.

    rcmae searches new teacher --base spec.yaml | rcmae submit -
    """
    overrides = overrides or []
    if any(override.startswith("space.") for override in overrides):
        raise typer.BadParameter("cannot change space, whose names contain dots: edit the printed spec")
    of_base = [override for override in overrides if override.startswith("base.")]
    of_search = [override for override in overrides if override not in of_base]
    base_document = apply_overrides({"base": read_document(read_text(base))}, of_base)["base"]
    document = apply_overrides(ready_search(name, base_document), of_search)
    SearchSpec.parse(document)
    echo_json(json.dumps(document, indent=2)) if as_json else typer.echo(yaml_text.dump(document), nl=False)


def _print_search(view: SearchView, as_json: bool) -> None:
    print_json(view) if as_json else out.print(render_searches.search(view))
